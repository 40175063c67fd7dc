"""Sets of files as their tools write them, and what the pipeline makes of them."""
