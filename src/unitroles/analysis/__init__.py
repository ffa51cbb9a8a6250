"""The verbs: analyse a model, ablate its units.

It joins the packages below it and computes nothing of its own.
Begin with `analyze`; what comes before the first pass is in `prepare`.
"""
