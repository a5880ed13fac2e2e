"""Stubs of proto/esr/v1, written by `python proto/generate.py`; a test compares them with the protos."""
