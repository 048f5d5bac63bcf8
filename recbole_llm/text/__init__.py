"""Texts of items and their vectors: item fields, encoder, cache and vector files."""
