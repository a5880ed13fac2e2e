"""A thread that does what has queued up together: while it works, more queues up, so nothing waits for a group to fill.

The busier it is, the larger its groups and the cheaper each item: queries share a search, feedback shares a commit.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from serving.errors import InternalError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Queued(NamedTuple, Generic[Item, Result]):
    """An item and who waits for it."""

    item: Item
    result: asyncio.Future[Result]


class GroupingThread(Generic[Item, Result]):
    """Does items of one kind in groups, on a thread of its own, for an event loop."""

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        largest: Callable[[Item], int],
    ) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            work: gives one result or exception per item; what it raises is every item's error.
            largest: most items of a group that begins with this one.
        """
        self._work = work
        self._largest = largest
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Queued[Item, Result] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item; if its future is cancelled before its turn, it is left undone."""
        result: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put(Queued(item, result))
        return result

    def close(self) -> None:
        """End the thread once everything that was queued is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, is_last = [first], False
            largest = self._largest(first.item)
            while len(group) < largest and not is_last:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    is_last = True
                else:
                    group.append(following)
            wanted = [queued for queued in group if not queued.result.cancelled()]
            if wanted:
                self._loop.call_soon_threadsafe(deliver, wanted, self._outcomes([queued.item for queued in wanted]))
            if is_last:
                return

    def _outcomes(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            return self._work(items)
        except Exception:
            log.exception("%s failed", self._thread.name)
            return [InternalError("internal error; the server's log has it")] * len(items)


def deliver(group: Sequence[Queued[Item, Result]], outcomes: Sequence[Result | Exception]) -> None:
    """Give every caller that still waits its outcome."""
    for queued, outcome in zip(group, outcomes, strict=True):
        if queued.result.done():
            continue
        if isinstance(outcome, Exception):
            queued.result.set_exception(outcome)
        else:
            queued.result.set_result(outcome)
