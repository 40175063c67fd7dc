"""Readers of videos with descriptions or transcripts."""
