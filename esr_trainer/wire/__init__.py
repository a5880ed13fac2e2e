"""Stubs of proto/esr/v1/relevance.proto, written by `python proto/generate.py`; a test compares them with the proto."""
