"""Publish a trained early-stage ranker as a bundle (ONNX towers, FAISS index, ids) and answer with it over gRPC."""

from serving.retriever import Retriever

__all__ = ["Retriever"]
