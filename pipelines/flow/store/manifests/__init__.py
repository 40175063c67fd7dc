"""Records of many parts: as columns of a Parquet file beside a manifest, and as a journal while a node runs."""
