"""What comes after a layer as a graph of its own, taken apart for masks and made cheap to run.

It knows graphs and where units are in them, but no model, no mask, no plan and no loss.
Begin with `head`: the export of a model taken apart at a layer, and divided where units meet.
"""
