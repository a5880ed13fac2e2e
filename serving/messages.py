"""From esr.v1's messages to queries, and from answers to messages on the wire."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.errors import InvalidRequestError
from serving.metrics import DEGRADED
from serving.query import Answer, Degradation, Query
from serving.retriever import Retriever
from serving.wire import retrieval_pb2

MAX_REQUEST_ID = 128
"""Characters."""

_degraded = {reason: DEGRADED.labels(reason.name.lower()) for reason in Degradation}


def query_of(request: Any) -> Query:
    """The query of a RetrieveRequest; only what the retriever cannot see is checked here.

    Raises:
        InvalidRequestError: a field breaks its rule.
    """
    if len(request.request_id) > MAX_REQUEST_ID:
        rule = f"({len(request.request_id)} characters) must have at most {MAX_REQUEST_ID}"
        raise InvalidRequestError("request_id", rule)
    context = request.WhichOneof("context")
    return Query(
        context_id=request.context_id,
        num_candidates=request.num_candidates,
        features=features_of(request.features.values) if context == "features" else None,
        embedding=np.array(request.embedding.values, np.float32) if context == "embedding" else None,
        num_slots=request.num_slots,
        excluded=request.excluded_item_ids,
        allowed=request.allowed_items.item_ids if request.HasField("allowed_items") else None,
        seed=request.sampling.seed if request.HasField("sampling") else None,
    )


def features_of(values: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The values of each feature."""
    return {name: list(feature.values) for name, feature in values.items()}


def response_of(request: Any, retriever: Retriever, answer: Answer) -> bytes:
    """A RetrieveResponse on the wire."""
    bundle = retriever.bundle
    is_drawn = request.HasField("sampling")
    for reason in answer.degradations:
        _degraded[reason].inc()
    encoded: bytes = retrieval_pb2.RetrieveResponse(
        model_id=bundle.manifest.model_id,
        model_version=bundle.version,
        item_ids=answer.item_ids,
        scores=answer.scores,
        experts=answer.experts,
        request_id=request.request_id or os.urandom(16).hex(),
        context_id=request.context_id,
        mode=retrieval_pb2.MODE_SAMPLED if is_drawn else retrieval_pb2.MODE_GREEDY,
        inclusion_propensities=answer.inclusion_propensities,
        log_probability=answer.log_probability,
        slate=answer.slate,
        slate_probabilities=answer.slate_probabilities,
        degradations=[f"DEGRADATION_{reason.name}" for reason in answer.degradations],
    ).SerializeToString()
    return encoded


def result_field(outcome: bytes, is_error: bool) -> bytes:
    """A BatchRetrieveResult on the wire, as an entry of BatchRetrieveResponse.results.

    Written by hand around what the compute thread has serialized: a tag (field number and type 2), a length, bytes.
    """
    return length_delimited(1, length_delimited(2 if is_error else 1, outcome))


def length_delimited(number: int, content: bytes) -> bytes:
    """One field of wire type 2."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + content


def remaining(seconds: float | None) -> float:
    """Seconds until a call's deadline; a call without one has all the time."""
    return math.inf if seconds is None else seconds
