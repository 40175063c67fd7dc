"""Readers of what a user already has: folders of files, WebDataset tars, and what img2dataset downloaded."""
