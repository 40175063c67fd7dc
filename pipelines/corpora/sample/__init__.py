"""The builder of the shipped sample corpus in `datasets/sample`."""
