"""What a downstream task adds to the pre-trained model: a classifier, or a decoder of answers."""
