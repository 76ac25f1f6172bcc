"""The command line, run in the process of the tests."""

import sys

import pytest

from vitrail.cli.app import main


def end_of(*words):
    """Run the command line in this process and return its exit code."""
    arguments, sys.argv = sys.argv, ["vitrail", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = arguments
    return end.value.code or 0
