"""One model a file, readable next to its paper."""
