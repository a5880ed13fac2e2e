"""Publish a trained early-stage ranker as a bundle (ONNX towers, FAISS index, ids) and answer with it over gRPC."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: its core prints lines beside one-line errors
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported, as in esr_trainer

from serving.query import Answer, Query
from serving.retriever import Retriever

__all__ = ["Answer", "Query", "Retriever"]
