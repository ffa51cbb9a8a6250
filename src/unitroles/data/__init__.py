"""Anything a user calls data, as samples that are read by number.

It knows which inputs a model takes, but no layer, no curve and no role.
Begin with `samples`, then `reading`.
"""
