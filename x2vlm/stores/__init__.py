"""Files below an fsspec URI, in a store that may fail for a while or be slow."""
