"""The command line: one file for each group of commands.

A command parses, calls one function of the package and prints. `options.py` defines every option type once, `output.py` prints.
"""
