"""Readers of what a user already has: tables, folders of files, WebDataset tars, and what img2dataset downloaded."""
