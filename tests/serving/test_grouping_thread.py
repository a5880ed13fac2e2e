import asyncio
import threading
from collections.abc import Sequence

import pytest

from serving.errors import InternalError
from serving.grouping_thread import GroupingThread


def test_what_queues_up_is_done_together() -> None:
    begun, go_on = threading.Event(), threading.Event()
    groups: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        groups.append(list(items))
        begun.set()
        go_on.wait(10)
        return [item * 10 for item in items]

    async def scenario() -> list[int]:
        thread = GroupingThread("test", work, lambda first: 3)
        futures = [thread.submit(0)]
        await asyncio.to_thread(begun.wait, 10)
        futures += [thread.submit(item) for item in (1, 2, 3, 4)]
        gone = thread.submit(5)
        gone.cancel()
        go_on.set()
        results = await asyncio.gather(*futures)
        await asyncio.to_thread(thread.close)
        return results

    assert asyncio.run(scenario()) == [0, 10, 20, 30, 40]
    assert groups == [[0], [1, 2, 3], [4]], "in order, at most 3 at once, without the one that nobody waits for"


def test_an_error_is_every_items_and_the_thread_lives_on() -> None:
    def work(items: Sequence[int]) -> list[int | Exception]:
        if 0 in items:
            raise ZeroDivisionError
        return [ValueError("odd") if item % 2 else item for item in items]

    async def scenario() -> None:
        thread = GroupingThread("test", work, lambda first: 1)
        with pytest.raises(InternalError):
            await thread.submit(0)
        with pytest.raises(ValueError, match="odd"):
            await thread.submit(1)
        assert await thread.submit(2) == 2
        last = thread.submit(4)
        await asyncio.to_thread(thread.close)
        assert await last == 4

    asyncio.run(scenario())
