"""esr.v1.LoadTest/NoOp: a fixed reply of Retrieve's size, to tell what a call costs before any work is done."""

import grpc

from serving.messages import query_of, response_of
from serving.retriever import Retriever
from serving.wire import retrieval_pb2

NAME = "esr.v1.LoadTest"


def add_no_op(server: grpc.aio.Server, retriever: Retriever, num_candidates: int) -> None:
    """Register the RPC; its reply is Retrieve's for the first context."""
    request = retrieval_pb2.RetrieveRequest(
        context_id=retriever.bundle.context_ids[0],
        num_candidates=min(num_candidates, retriever.bundle.manifest.num_items),
    )
    reply = response_of(request, retriever, retriever.retrieve(query_of(request)))

    async def no_op(request: object, context: object) -> bytes:
        return reply

    deserialize = retrieval_pb2.RetrieveRequest.FromString
    handler = grpc.unary_unary_rpc_method_handler(no_op, deserialize, bytes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"NoOp": handler}),))
