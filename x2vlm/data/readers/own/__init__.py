"""Readers of data that users bring in a form of their own."""
