"""Processes of jobs, and terminals that they write to."""
