"""Kinds of what training reads. A sample is an image or a video (`x2vlm.samples.MediaKind`)."""

from typing import Literal

StreamKind = Literal["image", "region", "video"]  # `region`: images of which boxes are read, with texts of their own
BatchKind = Literal["image", "region", "video", "text"]  # `text`: no image at all
