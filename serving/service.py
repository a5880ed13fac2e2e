"""esr.v1.RetrievalService: from messages to the retriever and back; refusals are raised, and end the call outside."""

import asyncio
import time
from functools import partial
from typing import Any

import grpc

from serving.batch_answer import MAX_CANDIDATES
from serving.current_call import describe_call
from serving.dispatcher import Dispatcher
from serving.errors import InvalidRequestError, ServingError, UnsupportedError
from serving.feedback import FeedbackRecorder, feedback_of
from serving.messages import query_of, remaining, response_of, result_field
from serving.refusals import status_of
from serving.retriever import Retriever
from serving.versions import Versions
from serving.wire import retrieval_pb2

NAME = retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class RetrievalService:
    """Answers with the active version."""

    def __init__(
        self,
        versions: Versions,
        dispatcher: Dispatcher,
        recorder: FeedbackRecorder | None,
        max_batch: int,
        max_message_bytes: int,
    ) -> None:
        self.versions = versions
        self.dispatcher = dispatcher
        self.recorder = recorder
        self.max_batch = max_batch
        self.max_message_bytes = max_message_bytes

    async def retrieve(self, request: Any, context: Context) -> bytes:
        """Pick or draw the candidates of one context; the response comes serialized."""
        retriever = self.versions.current()
        describe_call(request.request_id, retriever.bundle.version, request.num_candidates, 1)
        self.dispatcher.admit(1)
        deadline = time.monotonic() + remaining(context.time_remaining())
        return await self.submit(retriever, request, deadline)

    def submit(self, retriever: Retriever, request: Any, deadline: float) -> asyncio.Future[bytes]:
        """Queue one admitted request."""
        return self.dispatcher.submit(retriever, query_of(request), partial(response_of, request), deadline)

    async def batch_retrieve(self, request: Any, context: Context) -> bytes:
        """Answer many requests at once on one version; the response comes serialized."""
        if not 1 <= len(request.requests) <= self.max_batch:
            rule = f"({len(request.requests)}) must be from 1 to {self.max_batch}"
            raise InvalidRequestError("requests", rule)
        total = sum(min(one.num_candidates, MAX_CANDIDATES) for one in request.requests)
        if total > MAX_CANDIDATES:
            raise InvalidRequestError(
                "requests", f"({total} candidates together) must ask for {MAX_CANDIDATES} at most"
            )
        retriever = self.versions.current()
        describe_call(model_version=retriever.bundle.version, num_queries=len(request.requests))
        self.dispatcher.admit(len(request.requests))
        deadline = time.monotonic() + remaining(context.time_remaining())
        waiting: list[asyncio.Future[bytes] | ServingError] = []
        for one in request.requests:
            try:
                waiting.append(self.submit(retriever, one, deadline))
            except ServingError as error:
                waiting.append(error)
        try:
            return b"".join([await settled(one) for one in waiting])
        finally:  # a caller that has gone waits for none of them
            for one in waiting:
                if isinstance(one, asyncio.Future):
                    one.cancel()

    async def record_feedback(self, request: Any, context: Context) -> Any:
        """Write what came of an answer; durable when this returns."""
        feedback = feedback_of(request)
        describe_call(feedback.shown.request_id, feedback.shown.model_version)
        if self.recorder is None:
            raise UnsupportedError("RecordFeedback: this server was started without a feedback log")
        return retrieval_pb2.RecordFeedbackResponse(is_new=await self.recorder.record(feedback))

    async def get_model(self, request: Any, context: Context) -> Any:
        """Say which model answers and what it can be asked."""
        bundle = self.versions.current().bundle
        manifest = bundle.manifest
        return retrieval_pb2.GetModelResponse(
            model_id=manifest.model_id,
            model_version=bundle.version,
            num_contexts=manifest.num_contexts,
            num_items=manifest.num_items,
            num_experts=manifest.num_experts,
            embedding_dim=manifest.embedding_dim,
            num_candidates=manifest.num_candidates,
            context_features=sorted(bundle.vocabularies),
            index=manifest.index,
            index_recall=manifest.recall,
            has_ranker=bundle.ranker is not None,
            max_candidates=manifest.num_items,
            max_batch=self.max_batch,
            max_message_bytes=self.max_message_bytes,
            max_in_flight=self.dispatcher.max_in_flight,
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service; answers to Retrieve and BatchRetrieve go out as the bytes that they are."""
        wire = retrieval_pb2
        handlers = {
            "Retrieve": (self.retrieve, wire.RetrieveRequest, bytes),
            "BatchRetrieve": (self.batch_retrieve, wire.BatchRetrieveRequest, bytes),
            "RecordFeedback": (
                self.record_feedback,
                wire.RecordFeedbackRequest,
                wire.RecordFeedbackResponse.SerializeToString,
            ),
            "GetModel": (self.get_model, wire.GetModelRequest, wire.GetModelResponse.SerializeToString),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(method, request.FromString, serialize)
            for name, (method, request, serialize) in handlers.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))


async def settled(waiting: "asyncio.Future[bytes] | ServingError") -> bytes:
    """One result of a batch on the wire: the response, or the status with which Retrieve would have failed."""
    try:
        if isinstance(waiting, ServingError):
            raise waiting
        return result_field(await waiting, is_error=False)
    except ServingError as error:
        return result_field(status_of(error).SerializeToString(), is_error=True)
