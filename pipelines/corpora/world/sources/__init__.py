"""One module per family of upstream formats: from a shot to records of upstream tables, truth included."""
