"""The gate that calls pass: how many are inside, and how it closes.

gRPC's own stop ends calls that have arrived and that no handler took yet with CANCELLED, which no client retries. So a
drain closes this gate first. What is inside finishes, and what comes is told UNAVAILABLE. At last, callers are held at
the gate until all who hammer on it stand there: then nothing is on its way when gRPC stops, and they are told too.
"""

import asyncio
import time

QUIET_SECONDS = 0.1
"""Nobody came for as long: whoever would come is held, and the last answers have left."""
LINGER_SECONDS = 1.0
"""Longest wait for quiet."""
STEP_SECONDS = 0.01


class Gate:
    """Counts the calls inside, and turns callers away once it is closed; used on one event loop."""

    def __init__(self) -> None:
        self.is_open = True
        self.inside = 0
        self._last_knock = 0.0
        self._may_leave = asyncio.Event()
        self._may_leave.set()

    def __enter__(self) -> None:
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1

    async def knock(self) -> None:
        """Wait at the closed gate until the caller may be told so."""
        self._last_knock = time.monotonic()
        await self._may_leave.wait()

    async def close(self, seconds: float) -> None:
        """Let nobody in from now on, wait until nobody is inside, then until nobody comes, within `seconds`.

        Callers are then held, until `release`.
        """
        self.is_open = False
        end = time.monotonic() + seconds
        while self.inside and time.monotonic() < end:
            await asyncio.sleep(STEP_SECONDS)
        self._may_leave.clear()
        self._last_knock = time.monotonic()
        end = min(end, time.monotonic() + LINGER_SECONDS)
        while time.monotonic() < min(end, self._last_knock + QUIET_SECONDS):
            await asyncio.sleep(STEP_SECONDS)

    def release(self) -> None:
        """Let those who are held be told that the gate is closed."""
        self._may_leave.set()
