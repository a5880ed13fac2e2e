"""Load on a real server process: how many requests it answers, and how long they take.

A closed loop (a fixed number of callers, each waiting for its answer) finds the most a server can do; an open loop
(arrivals at a rate, whether or not answers come) finds the latency that callers see, measured from when a request was
due, so that a stalled server is not excused from the requests it held up.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from serving.wire import retrieval_pb2

CHANNELS = 2
"""The kernel balances connections over workers, so one would reach one worker only."""
WARM_UP_SECONDS = 1.0

Call = Callable[[int], Awaitable[object]]
"""Sends the request of a number."""


class Method(NamedTuple):
    """An RPC as the load test calls it: request bytes out, reply bytes in, so that the client costs little."""

    title: str
    path: str
    requests: Sequence[bytes]
    users: int = 1
    """Contexts of each request."""


class Measured(NamedTuple):
    """What a loop found; times in milliseconds, from when a request was due to its reply."""

    method: str
    loop: str
    """`closed` or `open`."""
    load: float
    """Callers of a closed loop, requests per second of an open one."""
    seconds: float
    requests_per_second: float
    users_per_second: float
    users_per_core_second: float
    """Per second of processor time that the server used."""
    p50: float
    p95: float
    p99: float
    errors: int


def methods(context_ids: Sequence[str], num_candidates: int, batch: int, can_sample: bool) -> list[Method]:
    """What is measured: a reply of Retrieve's size without work, then each kind of work that the index can do."""
    ids = [context_ids[row] for row in np.linspace(0, len(context_ids) - 1, 997).astype(int)]
    wire = retrieval_pb2

    def greedy(context_id: str) -> retrieval_pb2.RetrieveRequest:
        return wire.RetrieveRequest(context_id=context_id, num_candidates=num_candidates)

    plain = [greedy(context_id) for context_id in ids]
    drawn = [greedy(context_id) for context_id in ids]
    for seed, request in enumerate(drawn):
        request.sampling.seed = seed
    batches = [
        wire.BatchRetrieveRequest(requests=[plain[(start + number) % len(plain)] for number in range(batch)])
        for start in range(0, len(plain), 7)
    ]
    service = "/esr.v1.RetrievalService"
    serialized = [request.SerializeToString() for request in plain]
    sampled = Method("Retrieve, sampled", f"{service}/Retrieve", [request.SerializeToString() for request in drawn])
    return [
        Method("no-op", "/esr.v1.LoadTest/NoOp", serialized),
        Method("Retrieve, greedy", f"{service}/Retrieve", serialized),
        *([sampled] if can_sample else []),
        Method(
            f"BatchRetrieve({batch}), greedy",
            f"{service}/BatchRetrieve",
            [request.SerializeToString() for request in batches],
            users=batch,
        ),
    ]


async def measure(
    address: str, method: Method, loop: str, load: float, seconds: float, server_pids: Sequence[int]
) -> Measured:
    """Put one kind of load on a server.

    Args:
        address: `host:port`.
        method: what is called.
        loop: `closed` or `open`.
        load: callers, or requests per second.
        seconds: how long, after a warm-up.
        server_pids: whose processor time is counted.
    """
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
    stubs: list[Any] = [channel.unary_unary(method.path) for channel in channels]  # bytes in, bytes out

    async def call(number: int) -> object:
        return await stubs[number % CHANNELS](method.requests[number % len(method.requests)], timeout=10)

    run = LOOPS[loop]
    await run(call, load, WARM_UP_SECONDS)
    used, start = processor_seconds(server_pids), time.monotonic()
    latencies, errors = await run(call, load, seconds)
    elapsed = time.monotonic() - start
    used = processor_seconds(server_pids) - used
    for channel in channels:
        await channel.close()
    count = len(latencies)
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) * 1e3 if count else (np.nan,) * 3
    return Measured(
        method=method.title,
        loop=loop,
        load=round(load, 1),
        seconds=round(elapsed, 2),
        requests_per_second=round(count / elapsed, 1),
        users_per_second=round(count * method.users / elapsed, 1),
        users_per_core_second=round(count * method.users / used, 1),
        p50=round(float(p50), 3),
        p95=round(float(p95), 3),
        p99=round(float(p99), 3),
        errors=errors,
    )


async def closed_loop(call: Call, callers: float, seconds: float) -> tuple[list[float], int]:
    """Callers that each wait for their answer before they ask again: latencies in seconds, and errors."""
    end = time.monotonic() + seconds
    latencies: list[float] = []
    errors = 0

    async def caller(number: int) -> None:
        nonlocal errors
        while (start := time.monotonic()) < end:
            try:
                await call(number)
                latencies.append(time.monotonic() - start)
            except grpc.RpcError:
                errors += 1
            number += int(callers)

    await asyncio.gather(*map(caller, range(int(callers))))
    return latencies, errors


async def open_loop(call: Call, rate: float, seconds: float) -> tuple[list[float], int]:
    """Requests that are due at random times (a Poisson process), answered or not: latencies in seconds, and errors."""
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    start = time.monotonic()
    latencies: list[float] = []
    errors = 0

    async def one(number: int, at: float) -> None:
        nonlocal errors
        try:
            await call(number)
            latencies.append(time.monotonic() - at)
        except grpc.RpcError:
            errors += 1

    tasks = []
    for number, offset in enumerate(due):
        at = start + float(offset)
        if (wait := at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, at)))
    await asyncio.gather(*tasks)
    return latencies, errors


LOOPS = {"closed": closed_loop, "open": open_loop}
"""Name -> how requests are sent."""


def processor_seconds(pids: Sequence[int]) -> float:
    """Processor time that processes have used, user and system."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
