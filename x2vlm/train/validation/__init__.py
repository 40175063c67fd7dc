"""What is measured of held-out shards while a model trains."""
