"""Figures of a taxonomy and of several: `unitroles.plots`.

It knows finished results and matplotlib, never torch; a function takes `ax=` and returns it.
Begin with `roles` (one class, one network), then `comparison` (several models).
Every function draws on the axes it is given, or on a figure of its own, and returns what it drew
on; nothing is shown and nothing has to be closed, since figures never pass through pyplot.
"""

from unitroles.plots.comparison import compare, proportions_3d, shares
from unitroles.plots.roles import rof_curve, role_curves

__all__ = ["compare", "proportions_3d", "rof_curve", "role_curves", "shares"]
