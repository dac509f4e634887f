"""Training of one run: settings, loss, checkpoints, events."""
