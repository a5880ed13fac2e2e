"""What a handler, and the threads that work for it, tell of the call that they answer."""

from contextvars import ContextVar
from typing import NamedTuple


class Stage(NamedTuple):
    """A part of a call; times are time.monotonic()."""

    name: str
    """As in esr_stage_seconds."""
    start: float
    end: float
    num_queries: int
    """Queries, of any call, that it was shared with."""


class Facts:
    """What is known of a call beside its method and its end."""

    __slots__ = ("model_version", "num_candidates", "num_queries", "request_id", "stages")

    def __init__(self, keeps_stages: bool = False) -> None:
        self.request_id = ""
        self.model_version = 0
        self.num_candidates = 0
        self.num_queries = 0
        self.stages: list[Stage] | None = [] if keeps_stages else None
        """None: nobody asks. Only one thread appends at a time: the call waits for it."""


_facts: ContextVar[Facts | None] = ContextVar("facts", default=None)


def begin_call(facts: Facts) -> None:
    """Have the current task's call described in these facts."""
    _facts.set(facts)


def describe_call(request_id: str = "", model_version: int = 0, num_candidates: int = 0, num_queries: int = 0) -> None:
    """Tell what the current call asks for, and the version that answers it.

    Outside of a call, as in a unit test of a handler, nothing happens.
    """
    facts = _facts.get()
    if facts is not None:
        facts.request_id = request_id
        facts.model_version = model_version
        facts.num_candidates = num_candidates
        facts.num_queries = num_queries


def stages_of_call() -> list[Stage] | None:
    """Where the current call's stages are kept; None where nobody asks for them."""
    facts = _facts.get()
    return None if facts is None else facts.stages
