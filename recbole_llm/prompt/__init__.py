"""Prompts of titles or item codes, and what a language model answers."""
