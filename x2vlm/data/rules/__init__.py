"""What a row, box or caption must be like to be kept, as predicates over Arrow columns."""
