"""Training, schedules, checkpoints."""
