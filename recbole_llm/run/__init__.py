"""A run from settings to results, and the directory that it leaves behind."""
