"""A model as one plain graph, and graphs changed without changing what they compute.

It knows graphs and how a model is exported, but no mask, no plan and no loss.
Begin with `export`, which calls the others in their order.
"""
