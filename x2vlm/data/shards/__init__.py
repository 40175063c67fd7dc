"""Files that hold samples: media packs, training shards, their indexes and rows, exports."""

from x2vlm.data.shards.reading import webdataset

__all__ = ["webdataset"]
