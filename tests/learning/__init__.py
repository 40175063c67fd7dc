"""What a model learns on a procedural world. Slow: hours of two cores, in slices that a killed run keeps."""
