"""Judge checkpoints by the log of another policy."""
