"""The dispatcher: queries from many calls to one compute thread, and no more of them than it can bear.

The event loop only parses, admits and writes. Whoever is turned away is turned away at once, before any work; a query
whose caller has gone, or whose deadline has passed, is dropped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from serving.current_call import Stage, stages_of_call
from serving.errors import DeadlinePassedError, InternalError, OverloadedError, ServingError
from serving.grouping_thread import GroupingThread
from serving.metrics import IN_FLIGHT, REJECTED, STAGE_SECONDS
from serving.query import Answer, Query
from serving.retriever import Retriever

GROUP = 64
"""Most queries that are answered together."""
GROUP_SCORES = 20_000_000
"""Most scores (M x N per query) of a group, so that a large catalogue does not hold up whoever comes next."""
RETRY_SECONDS = 0.05
"""After how long a rejected caller may try again."""

log = logging.getLogger(__name__)

_queue_seconds = STAGE_SECONDS.labels("queue")
_compute_seconds = STAGE_SECONDS.labels("compute")
_overloaded = REJECTED.labels("overloaded")

Encode = Callable[[Retriever, Answer], Any]
"""What the compute thread makes of an answer: serializing there keeps the event loop free."""


class Work(NamedTuple):
    """An admitted query."""

    retriever: Retriever
    """The version that was active when it was admitted; it finishes on this one."""
    query: Query
    encode: Encode
    admitted: float
    """time.monotonic()."""
    deadline: float
    """time.monotonic() after which nobody waits."""
    stages: list[Stage] | None
    """Where its call's stages are kept, if they are."""


class Dispatcher:
    """Admits queries and has them answered by its compute thread."""

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self._thread: GroupingThread[Work, Any] = GroupingThread("compute", answer_group, group_size)

    def admit(self, count: int) -> None:
        """Check that so many queries may come in now.

        Raises:
            OverloadedError: too many are in flight.
        """
        if self.in_flight + count > self.max_in_flight:
            _overloaded.inc(count)
            raise OverloadedError(
                f"{self.in_flight} queries are in flight, and {count} more exceed {self.max_in_flight}", RETRY_SECONDS
            )

    def submit(self, retriever: Retriever, query: Query, encode: Encode, deadline: float) -> asyncio.Future[Any]:
        """Queue an admitted query; the future's result is the encoded answer, its exception a ServingError."""
        work = Work(retriever, query, encode, time.monotonic(), deadline, stages_of_call())
        result = self._thread.submit(work)
        self.in_flight += 1
        IN_FLIGHT.inc()
        result.add_done_callback(self._leave)
        return result

    def _leave(self, result: asyncio.Future[Any]) -> None:
        self.in_flight -= 1
        IN_FLIGHT.dec()

    def close(self) -> None:
        """End the compute thread once everything queued was answered."""
        self._thread.close()


def group_size(work: Work) -> int:
    """How many queries are answered together with this one."""
    manifest = work.retriever.bundle.manifest
    return max(1, min(GROUP, GROUP_SCORES // (manifest.num_items * manifest.num_experts)))


def answer_group(group: Sequence[Work]) -> list[Any]:
    """Answer a group of queries, version by version."""
    start = time.monotonic()
    outcomes: dict[int, Any] = {}
    in_time = [number for number, work in enumerate(group) if work.deadline > start]
    for retriever in {id(group[number].retriever): group[number].retriever for number in in_time}.values():
        numbers = [number for number in in_time if group[number].retriever is retriever]
        outcomes |= dict(zip(numbers, answer_same([group[number] for number in numbers]), strict=True))
    end = time.monotonic()
    for work in group:
        _queue_seconds.observe(start - work.admitted)
    _compute_seconds.observe(end - start)
    keep_stages(group, start, end)
    late = DeadlinePassedError("the deadline passed before the query's turn came")
    return [outcomes.get(number, late) for number in range(len(group))]


def keep_stages(group: Sequence[Work], start: float, end: float) -> None:
    """Tell the calls that keep their stages of a group, each once: a batch has many queries in it."""
    keeping = [(work.stages, work.admitted) for work in group if work.stages is not None]
    for stages, admitted in {id(kept[0]): kept for kept in reversed(keeping)}.values():
        stages.append(Stage("queue", admitted, start, len(group)))
        stages.append(Stage("compute", start, end, len(group)))


def answer_same(group: Sequence[Work]) -> list[Any]:
    """Answer queries of one version; what goes wrong with one is not another's error."""
    retriever = group[0].retriever
    try:
        return [
            answer if isinstance(answer, ServingError) else work.encode(retriever, answer)
            for work, answer in zip(group, retriever.answer([work.query for work in group]), strict=True)
        ]
    except Exception:
        if len(group) > 1:
            return [outcome for work in group for outcome in answer_same([work])]
        log.exception("a query failed")
        return [InternalError("internal error; the server's log has it")]
