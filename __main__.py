"""`python -m vitrail`."""

from .cli.app import main

main()
