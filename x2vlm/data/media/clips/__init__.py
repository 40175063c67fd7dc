"""Decoding clips: what FFmpeg is let do, what it may cost, and what of a frame is shown."""
