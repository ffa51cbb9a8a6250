"""Data sets, networks and trainings.

It uses the public names and the ground only, as a user would.
Begin with `settings`, which reads the committed recipes beside it.
"""
