"""Building blocks of the towers and the fusion encoder: attention blocks, packed sequences, layouts."""
