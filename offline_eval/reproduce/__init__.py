"""Experiments: what was published, and our own studies, run here."""
