"""Readers of image-text pairs from the web."""
