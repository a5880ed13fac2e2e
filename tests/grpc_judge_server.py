"""A judge over gRPC for tests, in a process of its own: `python -m tests.grpc_judge_server WAY FILE [KEY CERTIFICATE]`.

It prints its port, and writes the pairs of each call to FILE, a line each. WAY says how it misbehaves. An item is
relevant by 0.75 to a context of the same parity, else by 0.25.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from esr_trainer.wire.relevance_pb2 import DescribedRow, JudgePairsRequest, JudgePairsResponse
from esr_trainer.wire.relevance_pb2_grpc import RelevanceServiceServicer, add_RelevanceServiceServicer_to_server


class Judge(RelevanceServiceServicer):
    """Misbehaves in one way."""

    def __init__(self, way: str, calls: Path) -> None:
        self.way = way
        self.calls = calls
        self.heard: set[str] = set()

    def JudgePairs(self, request: JudgePairsRequest, context: grpc.ServicerContext) -> JudgePairsResponse:
        """Answer as the way says; a flaky one fails the first time that it hears a question."""
        question = json.dumps([[told(pair.context), told(pair.item)] for pair in request.pairs])
        with self.calls.open("a") as file:
            file.write(question + "\n")
        is_first = question not in self.heard
        self.heard.add(question)
        good = [0.75 if (int(pair.context.id) - int(pair.item.id)) % 2 == 0 else 0.25 for pair in request.pairs]
        if self.way == "flaky" and is_first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        if self.way == "token" and ("authorization", "Bearer secret") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        if self.way == "slow":
            time.sleep(2)
        if self.way == "crash":
            raise RuntimeError("a bug of the judge")
        few = self.way == "few" or (self.way == "flaky-length" and is_first)
        return JudgePairsResponse(relevance=[7.0] * len(good) if self.way == "outside" else good[few:])


def told(row: DescribedRow) -> list[object]:
    """What was said of a row."""
    return [row.id, dict(row.texts)]


if __name__ == "__main__":
    way, calls, *pair = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(8))
    add_RelevanceServiceServicer_to_server(Judge(way, Path(calls)), server)
    if pair:
        key, certificate = (Path(one).read_bytes() for one in pair)
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port("localhost:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()
