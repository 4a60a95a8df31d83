"""How answers look: text for a terminal, HTML for a notebook, bytes for a file or a pipe.

Nothing here asks a question or computes a number that a query should have. Every string that came
from a corpus or a model passes through `characters` before it reaches a screen.
"""
