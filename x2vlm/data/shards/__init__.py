"""Files that hold samples: media packs, training shards, their indexes and rows, exports."""
