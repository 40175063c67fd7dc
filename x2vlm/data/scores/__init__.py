"""CLIP scores of images with texts, and the thresholds they suggest."""
