"""Model cards: the template and the code that renders it.

`official/` holds the rendered cards of official checkpoints.
"""
