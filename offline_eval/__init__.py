"""Judge checkpoints before they go live."""
