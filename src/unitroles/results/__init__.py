"""A finished taxonomy: one labelled data set and the tables read from it.

It never imports torch: a saved result opens where no model can run.
Begin with `dataset` (the variables), then `taxonomy` (the face users meet).
"""
