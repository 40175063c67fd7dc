"""From a table, a folder or tars of a user's own to a card and an experiment that trains on them."""
