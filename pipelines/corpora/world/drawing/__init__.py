"""Scenes as values, and their geometry, pixels, clips and texts."""
