"""Ranks and the metrics computed from them."""
