"""esr.v1.RetrievalService: from messages to the retriever and back; refusals become statuses."""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.errors import STATUS, InvalidRequestError, ServingError
from serving.telemetry import describe_call
from serving.versions import Versions
from serving.wire import retrieval_pb2, retrieval_pb2_grpc

NAME = retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name


class RetrievalService(retrieval_pb2_grpc.RetrievalServiceServicer):  # type: ignore[misc]
    """Answers with the active version; a request keeps the one that it began with."""

    def __init__(self, versions: Versions) -> None:
        self.versions = versions

    async def Retrieve(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Pick the candidates of one context."""
        try:
            retriever = self.versions.current()
            describe_call(model_version=retriever.bundle.version)
            candidates = retriever.retrieve(request.context_id, request.num_candidates)
        except ServingError as error:
            await refuse(context, error)
        bundle = retriever.bundle
        return retrieval_pb2.RetrieveResponse(
            model_id=bundle.manifest.model_id,
            model_version=bundle.version,
            item_ids=candidates.item_ids,
            scores=candidates.scores,
            experts=candidates.experts,
        )


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: ServingError) -> NoReturn:
    """End the call with the error's status; a field's violation goes along as google.rpc.BadRequest."""
    details = []
    if isinstance(error, InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.rule)
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        details.append(packed)
    code = STATUS[type(error)]
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=str(error), details=details))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")
