"""Scenes as values, and what they look like and are called: geometry, pixels, clips, texts."""
