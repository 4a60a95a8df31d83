"""The SQL face of a snapshot: views and table macros over its Parquet files."""

from featuredb.catalog.build import build_catalog, built_catalog
from featuredb.catalog.connect import connect
from featuredb.catalog.statements import statements

__all__ = ["build_catalog", "built_catalog", "connect", "statements"]
