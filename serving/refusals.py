"""Refusals on the wire: a ServingError's google.rpc.Status, and the end of a call with it."""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.errors import STATUS, InvalidRequestError, OverloadedError, ServingError


async def refuse(context: "grpc.aio.ServicerContext[Any, Any]", error: ServingError) -> NoReturn:
    """End the call with the error's status and details."""
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")


def status_of(error: ServingError) -> status_pb2.Status:
    """An error's google.rpc.Status; a field's violation goes along as BadRequest, when to try again as RetryInfo."""
    details = []
    if isinstance(error, InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.rule)
        details.append(packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, OverloadedError):
        delay = duration_pb2.Duration(nanos=int(error.retry_seconds * 1e9))
        details.append(packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=STATUS[type(error)].value[0], message=str(error), details=details)


def packed(detail: Any) -> any_pb2.Any:
    """A detail as Any."""
    result = any_pb2.Any()
    result.Pack(detail)
    return result
