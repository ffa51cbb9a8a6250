"""The same test again for other samples, orders and measures.

It reads what the one pass kept and never runs the body of the model again.
Begin with `evidence` (what is asked for), then `recompute`.
"""
