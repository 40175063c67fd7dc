"""CLIP scores of images with texts, and suggested thresholds."""
