"""Several models under one protocol: planned, run, tested against each other and written down."""
