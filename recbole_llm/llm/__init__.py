"""Pretrained language models: found by name, loaded, adapted."""
