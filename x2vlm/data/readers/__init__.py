"""One reader per upstream annotation format."""
