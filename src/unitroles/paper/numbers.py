"""The numbers of the paper: five VGG16 networks on ImageNet.

Source: Zhao, Zhang, Hu, Role Taxonomy of Units in Deep Neural Networks, arXiv 2011.00789,
tables 1-3; accuracies as fractions, role percentages as fractions.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from unitroles.results.relation import correlated

ROLES = ("core", "overfitted", "generalizing", "confusing")
MODELS = pd.Index(["A", "B", "C", "D", "E"], name="model")

TABLE_1 = pd.DataFrame(
    {
        "train_accuracy": [0.732, 0.730, 0.818, 0.828, 0.978],
        "test_accuracy": [0.657, 0.600, 0.543, 0.444, 0.374],
        "gap": [0.075, 0.130, 0.275, 0.384, 0.604],
    },
    index=MODELS,
)

_MEANS = [
    [0.161, 0.031, 0.017, 0.791],
    [0.259, 0.034, 0.018, 0.689],
    [0.286, 0.115, 0.005, 0.594],
    [0.254, 0.339, 0.002, 0.405],
    [0.177, 0.614, 0.000, 0.209],
]
_STD_OVER_CLASSES = [
    [0.09, 0.01, 0.01, 0.10],
    [0.16, 0.01, 0.01, 0.17],
    [0.20, 0.04, 0.00, 0.22],
    [0.17, 0.11, 0.00, 0.24],
    [0.14, 0.18, 0.00, 0.20],
]
_STD_OVER_UNITS = [
    [0.10, 0.01, 0.01, 0.12],
    [0.15, 0.02, 0.01, 0.16],
    [0.18, 0.04, 0.00, 0.20],
    [0.17, 0.10, 0.00, 0.22],
    [0.15, 0.16, 0.00, 0.22],
]


def _frame(rows: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, index=MODELS, columns=list(ROLES))


MEAN = _frame(_MEANS)
STD = {"std_over_labels": _frame(_STD_OVER_CLASSES), "std_over_units": _frame(_STD_OVER_UNITS)}


def with_active(table: pd.DataFrame) -> pd.DataFrame:
    """Add n0_train / N, the share of units active on the training split: core + overfitted."""
    return table.assign(active_on_train=table["core"] + table["overfitted"])


def relation(table: pd.DataFrame, gap: pd.Series) -> pd.DataFrame:
    """Pearson and Spearman correlation of every column with the gap over the models.

    NaN where a column or the gap does not vary, or where there are fewer than three models.
    """
    found = correlated(table, gap[table.index].to_numpy())[["pearson", "spearman"]]
    return found.where(np.full(found.shape, len(table) >= 3)).rename_axis("role")


RELATION = relation(with_active(MEAN), TABLE_1["gap"])
