"""What is done to the bytes of a fetched image before they are stored."""
