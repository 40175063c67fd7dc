"""Finding rows that show the same image: among each other, and among evaluation sets."""
