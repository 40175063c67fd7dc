"""Reading, filtering, sharding, transforming and batching of image-text, object, region and video samples."""
