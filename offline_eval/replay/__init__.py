"""Judge checkpoints by replay: the same users through each."""
