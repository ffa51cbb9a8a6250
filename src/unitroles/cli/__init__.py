"""The command line: parse, call, print.

It computes nothing: every command calls public names and prints what they return.
Begin with `app`, which has one function for each command.
"""
