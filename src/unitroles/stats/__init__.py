"""Statistics of curves, sets and draws: arrays in, arrays out.

Only NumPy and SciPy: it knows no torch, no model and no labelled result.
Begin with `minima` (one curve), then `evidence` (what sampling alone does to a result).
"""
