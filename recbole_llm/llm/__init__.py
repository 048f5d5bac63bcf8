"""Language models: found by name, turned into item vectors, cached."""
