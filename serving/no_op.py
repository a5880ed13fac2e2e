"""esr.v1.LoadTest/NoOp: a fixed reply of Retrieve's size, to tell what a call costs before any work is done."""

from functools import cache

import grpc

from serving.messages import query_of, response_of
from serving.versions import Versions
from serving.wire import retrieval_pb2

NAME = "esr.v1.LoadTest"


def add_no_op(server: grpc.aio.Server, versions: Versions, num_candidates: int) -> None:
    """Register the RPC; its reply is Retrieve's for the first context."""

    @cache
    def reply() -> bytes:
        retriever = versions.current()
        k = min(num_candidates, retriever.bundle.manifest.num_items)
        request = retrieval_pb2.RetrieveRequest(context_id=retriever.bundle.context_ids[0], num_candidates=k)
        return response_of(request, retriever, retriever.retrieve(query_of(request)))

    async def no_op(request: object, context: object) -> bytes:
        return reply()

    handler = grpc.unary_unary_rpc_method_handler(no_op, retrieval_pb2.RetrieveRequest.FromString, bytes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"NoOp": handler}),))
