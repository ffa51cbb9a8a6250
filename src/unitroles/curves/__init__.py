"""The one pass through the model and the retrieval test: scores, losses, curves.

It sums over samples and divides once; what the sums mean is for `roles` and `stats`.
Begin with `collect` (the pass), then `retrieval` (the curves).
"""
