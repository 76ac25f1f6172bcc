"""The command line: one file per group of commands; a command parses, calls one function of the package and returns a `Result`.

`options.py` defines every option once, `output.py` prints results, warnings and errors.
"""
