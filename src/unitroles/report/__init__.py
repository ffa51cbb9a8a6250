"""A taxonomy as text.

It reads finished results and never imports torch; it computes nothing of its own.
Begin with `text`, whose sections are in the order of the printed page.
"""
