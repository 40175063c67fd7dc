"""From shards to batches: streams, order, examples, augmentation, masking, the loader."""
