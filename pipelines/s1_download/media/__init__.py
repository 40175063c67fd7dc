"""Processing of a fetched image before it is stored."""
