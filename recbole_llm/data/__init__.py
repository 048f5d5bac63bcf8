"""Atomic files -> histories, training views, loaders, item texts."""
