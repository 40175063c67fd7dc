"""What this project makes itself: the shipped sample, the procedural world, small models and vocabularies."""
