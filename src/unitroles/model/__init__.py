"""The user's model: borrow it, run it, look inside, give it back.

It knows nothing of data sets, graphs, plans or roles.
Begin with `borrow`, then `forward`; `trace` finds the layers and `hooks` switches units off.
"""
