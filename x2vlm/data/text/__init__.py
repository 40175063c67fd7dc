"""Texts: cleaning, descriptions of concepts, tokenizers."""
