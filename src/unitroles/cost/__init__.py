"""The cost of an analysis, said beforehand.

It runs a few samples through the stages of an analysis, never the analysis itself.
Begin with `forecast` (`unitroles.plan`), then `layers` (`unitroles.layers`).
"""
