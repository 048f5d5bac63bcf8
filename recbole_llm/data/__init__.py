"""Atomic files -> histories, training views, loaders."""
