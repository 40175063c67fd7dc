"""What the first rank writes down while it trains, beside the training thread."""
