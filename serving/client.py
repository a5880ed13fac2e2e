"""A client of esr.v1.RetrievalService."""

import grpc

from serving.errors import ServingError
from serving.query import Answer
from serving.wire import retrieval_pb2, retrieval_pb2_grpc


class CallError(ServingError):
    """The server refused, or could not be reached."""


def retrieve(address: str, context_id: str, num_candidates: int, seconds: float = 5.0) -> tuple[Answer, str, int]:
    """Ask a server for the candidates of one context.

    Args:
        address: `host:port`.
        context_id: the context's own id.
        num_candidates: how many.
        seconds: the call's deadline, connecting included.

    Returns:
        The candidates, the model's id, and the bundle's version.

    Raises:
        CallError: one line with the status and the server's message.
    """
    try:
        request = retrieval_pb2.RetrieveRequest(context_id=context_id, num_candidates=num_candidates)
    except ValueError as error:  # not UTF-8, or not an unsigned 32-bit integer
        raise CallError(f"context_id ({context_id!a}) or num_candidates ({num_candidates}) cannot be sent") from error
    with grpc.insecure_channel(address) as channel:
        try:
            response = retrieval_pb2_grpc.RetrievalServiceStub(channel).Retrieve(request, timeout=seconds)
        except grpc.RpcError as error:
            raise CallError(f"{error.code().name} from {address}: {error.details()}") from error
    candidates = Answer(list(response.item_ids), list(response.scores), list(response.experts))
    return candidates, response.model_id, response.model_version
