"""How the shipped sample corpus in `datasets/sample` was made."""
