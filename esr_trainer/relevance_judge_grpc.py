"""A judge of relevance behind gRPC: `RelevanceService` of proto/esr/v1/relevance.proto, at grpc://HOST:PORT.

With grpcs:// the connection has TLS, and trusts gRPC's own roots or those of GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.
"""

from collections.abc import Sequence
from pathlib import Path

import grpc

from esr_trainer.command_line import UsageError
from esr_trainer.pairs import Described, Pair
from esr_trainer.relevance_judge import MAX_ANSWER_BYTES, Judge, PassingError, authorization, check_url
from esr_trainer.wire.relevance_pb2 import DescribedRow, JudgePairsRequest, RelevancePair
from esr_trainer.wire.relevance_pb2_grpc import RelevanceServiceStub

PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""Statuses after which the same call may succeed."""


class GrpcJudge(Judge):
    """Calls a judge over gRPC."""

    def __init__(self, url: str, budget: int, attempts: int, seconds: float, token_file: Path | None) -> None:
        """Check the URL and read the token; nothing is called yet.

        Raises:
            UsageError: the URL is not of grpc or grpcs, names no host or carries a password, or the token's file cannot
                be read.
        """
        super().__init__(url, budget, attempts)
        self.seconds = seconds
        self._metadata = [(name.lower(), value) for name, value in authorization(token_file).items()]
        place = check_url(url, ("grpc", "grpcs"))
        options = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES), ("grpc.enable_retries", 0)]
        if url.startswith("grpcs:"):
            channel = grpc.secure_channel(place, grpc.ssl_channel_credentials(), options)
        else:
            channel = grpc.insecure_channel(place, options)
        self._stub = RelevanceServiceStub(channel)

    def answer(self, pairs: Sequence[Pair]) -> list[float]:
        """What one JudgePairs brings."""
        asked = [RelevancePair(context=row(pair.context), item=row(pair.item)) for pair in pairs]
        request = JudgePairsRequest(pairs=asked)
        try:
            response = self._stub.JudgePairs(request, timeout=self.seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            kind = PassingError if error.code() in PASSING else UsageError
            raise kind(f"oracle ({self.url}) answered with {error.code().name}") from error
        return list(response.relevance)


def row(described: Described) -> DescribedRow:
    """A context or an item as its message."""
    return DescribedRow(id=described.id, texts=dict(described.texts))
