"""Finding rows that show the same image: within the training data, and in evaluation sets."""
