"""The command line: a thin layer over `featuredb.api` and the renderers."""

from featuredb.cli.root import main

__all__ = ["main"]
