"""The paper's experiments, tables, figures and numbers.

It uses the public names, finished results and the zoo; nothing of the engine.
Begin with `reproduce`, the main job; the numbers of the paper are in `numbers`.
"""
