"""An exported graph as it is: its operations, its cost, its two sides of a layer.

It changes nothing in a graph but where it is cut, and knows no plan.
Begin with `ops`, the one table of ATen operations; then `extract` and `cut`.
"""
