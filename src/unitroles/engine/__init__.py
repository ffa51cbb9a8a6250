"""Run a model under many masks.

It gives logits and knows neither classes, losses nor roles.
Begin with `plan` (the definition, masked forwards of the whole model), then `choice`.
"""
