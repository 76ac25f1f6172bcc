"""`python -m vitrail`."""

from .cli import main

main()
