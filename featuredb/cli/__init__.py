"""The command line: a thin layer over `featuredb.open`, `featuredb.ingest` and the renderers."""

from featuredb.cli.root import main

__all__ = ["main"]
