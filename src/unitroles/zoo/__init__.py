"""Data sets, model families and training runs that reproduce the paper's experiments."""
