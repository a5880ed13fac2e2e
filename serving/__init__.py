"""Publish a trained early-stage ranker as a bundle (ONNX towers, FAISS index, ids) and answer with it over gRPC."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: its core prints lines beside one-line errors

import esr_trainer  # noqa: F401 - before onnxruntime is imported, which it keeps from reporting
from serving.query import Answer, Query
from serving.retriever import Retriever

__all__ = ["Answer", "Query", "Retriever"]
