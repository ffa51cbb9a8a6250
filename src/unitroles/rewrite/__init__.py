"""Change a graph without changing what it computes.

It knows graphs and how a model is exported, but no mask, no plan and no loss.
Begin with `export`, which calls the others in their order.
"""
