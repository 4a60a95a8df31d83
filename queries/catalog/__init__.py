"""The SQL face of a snapshot: views and table macros over its Parquet files."""
