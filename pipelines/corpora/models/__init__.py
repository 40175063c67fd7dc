"""Training of the small CLIP models and vocabularies of the sample and the world."""
