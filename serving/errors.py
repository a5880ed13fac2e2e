"""What can go wrong while serving, and the gRPC status of each.

    ServingError
    ├── InvalidRequestError      INVALID_ARGUMENT, with the field's violation
    ├── UnknownContextError      NOT_FOUND
    ├── UnsupportedError         FAILED_PRECONDITION: the served model cannot do what is asked
    ├── AlreadyRecordedError     ALREADY_EXISTS: other feedback was recorded for the request id
    ├── OverloadedError          RESOURCE_EXHAUSTED, with retry info: too many queries in flight
    ├── NotServingError          UNAVAILABLE: loading or draining, or the feedback log cannot be written
    ├── DeadlinePassedError      DEADLINE_EXCEEDED: nobody waits for the answer any more
    ├── UnknownVersionError      NOT_FOUND: no such version under the bundle root
    ├── UnknownModelError        NOT_FOUND: no model of that name
    ├── BundleUnusableError      FAILED_PRECONDITION: nothing to serve, or a bundle of another schema
    ├── BundleCorruptError       DATA_LOSS: a file is missing, changed or does not fit the others
    └── InternalError            INTERNAL: a defect; the server's log has it

Messages are one line that quotes the value and the rule, and never hold a path of the server.
"""

from collections.abc import Mapping

import grpc


class ServingError(Exception):
    """A refusal with a message for the caller."""


class InvalidRequestError(ServingError):
    """A field of a request breaks its rule."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


class UnknownContextError(ServingError):
    """The served model has never seen the context."""


class UnsupportedError(ServingError):
    """The served model cannot do what is asked."""


class AlreadyRecordedError(ServingError):
    """Other feedback was recorded for the same request id."""


class OverloadedError(ServingError):
    """Too many queries are in flight; no work was done for this one."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class NotServingError(ServingError):
    """The server is loading or draining, or cannot write its feedback log."""


class DeadlinePassedError(ServingError):
    """Nobody waits for the answer any more."""


class UnknownVersionError(ServingError):
    """The bundle root has no such version."""


class UnknownModelError(ServingError):
    """The server has one model, and not of that name."""


class BundleUnusableError(ServingError):
    """There is no bundle, or it is of a schema that this version does not read."""


class BundleCorruptError(ServingError):
    """The bundle's files are not what its manifest says."""


class InternalError(ServingError):
    """A defect of the server."""


STATUS: Mapping[type[ServingError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownContextError: grpc.StatusCode.NOT_FOUND,
    UnsupportedError: grpc.StatusCode.FAILED_PRECONDITION,
    AlreadyRecordedError: grpc.StatusCode.ALREADY_EXISTS,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotServingError: grpc.StatusCode.UNAVAILABLE,
    DeadlinePassedError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnknownVersionError: grpc.StatusCode.NOT_FOUND,
    UnknownModelError: grpc.StatusCode.NOT_FOUND,
    BundleUnusableError: grpc.StatusCode.FAILED_PRECONDITION,
    BundleCorruptError: grpc.StatusCode.DATA_LOSS,
    InternalError: grpc.StatusCode.INTERNAL,
}


def quoted(value: object) -> str:
    """The start of a caller's value, on one line, for a message."""
    return repr(str(value)[:100])[1:-1]
