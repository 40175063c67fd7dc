"""Comparing images or clips with texts: their features, kept or on disk, and how a model learns to compare."""
