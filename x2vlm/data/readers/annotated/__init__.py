"""Readers of annotated images: captions, boxes, regions, phrases."""
