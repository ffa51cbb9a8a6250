"""What command lines with bad input name: a file of models and arrays of two splits."""

from pathlib import Path

import numpy as np

NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))

def broken():
    raise RuntimeError("no such width")

number = 5

def loss(*given):
    return None
"""


def write(folder: Path) -> None:
    """Into this folder, `bad_nets.py` and `d.npz`."""
    (folder / "bad_nets.py").write_text(NETS)
    draw, arrays = np.random.default_rng(0), {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = draw.normal(size=(30, 4, 4)).astype(np.float32)
        arrays[f"{split}_labels"] = np.arange(30) % 3
        arrays[f"{split}_words"] = np.array(["a", "b", "c"] * 10)
    np.savez(folder / "d.npz", **arrays)
