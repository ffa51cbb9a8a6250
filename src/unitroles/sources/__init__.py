"""Models and data by name, as the command line gives them.

It turns names into what a Python user would pass, and knows nothing of the analysis.
Begin with `factory` (models), then `splits` (training and test data).
"""
