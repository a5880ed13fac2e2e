"""One record of the feedback log: what was shown, what it earned, and the rules that both keep.

Axes: K candidates, L slots.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypeVar, get_args

from esr_trainer.command_line import UsageError

Mode = Literal["greedy", "sampled"]
Number = TypeVar("Number", int, float)
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_REQUEST_ID = 128
"""Characters of a request id: it is an index key."""
QUOTED = 100
"""Characters of a value that an error quotes."""


class FeedbackRefusedError(UsageError):
    """A field of a record breaks its rule."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


class Shown(NamedTuple):
    """What a retrieval answered, as the client sends it back."""

    request_id: str
    """Names the retrieval; its feedback is recorded once."""
    model_id: str
    model_version: int
    mode: Mode
    context_id: str
    """Empty if the context came as features or as an embedding."""
    candidates: tuple[str, ...]
    """(K,), item ids in the order of the positions."""
    inclusion_propensities: tuple[float, ...]
    """(K,), P(item in candidate set | context), in (0, 1]; empty if greedy."""
    log_probability: float | None
    """Of the ordered candidates under the policy, at most 0; None if greedy."""
    experts: tuple[int, ...]
    """(K,), the expert of each position, from 0."""


class Feedback(NamedTuple):
    """What was shown, the slate that the LSR made of it, and the rewards."""

    shown: Shown
    slate: tuple[str, ...]
    """(L,), item ids by slot, among the candidates."""
    lsr_probabilities: tuple[float, ...]
    """(L,), the LSR's probability of each slot's item, in (0, 1]; empty if unknown."""
    rewards: tuple[float, ...]
    """(L,), finite."""
    time: datetime
    """When it was recorded, in UTC; not part of what makes two records the same."""


COLUMNS = (*Shown._fields, *Feedback._fields[1:])
"""The names of a record's values side by side, as tables hold it."""


def values_of(feedback: Feedback) -> tuple[object, ...]:
    """A record's values in the order of COLUMNS."""
    return (*feedback.shown, *feedback[1:])


def feedback_of(values: Sequence[object]) -> Feedback:
    """The record of these values, unchecked; lists become tuples."""
    parts = [tuple(value) if isinstance(value, list) else value for value in values]
    split = len(Shown._fields)
    return Feedback(Shown(*parts[:split]), *parts[split:])  # type: ignore[arg-type]


def check(feedback: Feedback) -> None:
    """See that a record keeps every rule that the fields above name.

    Raises:
        FeedbackRefusedError: the first field that does not.
    """
    _check_shown(feedback.shown)
    slate, num_slots = feedback.slate, len(feedback.slate)
    _check_items("slate", slate)
    if stranger := set(slate).difference(feedback.shown.candidates):
        raise FeedbackRefusedError("slate", f"({min(stranger)[:QUOTED]}) must be among the candidates")
    if feedback.lsr_probabilities:
        _check_numbers("lsr_probabilities", feedback.lsr_probabilities, num_slots, _are_probabilities, "in (0, 1]")
    _check_numbers("rewards", feedback.rewards, num_slots, _are_finite, "a finite number")
    if feedback.time.utcoffset() != timedelta(0):
        raise FeedbackRefusedError("time", f"({feedback.time}) must be in UTC")


def _check_shown(shown: Shown) -> None:
    if not 1 <= len(shown.request_id) <= MAX_REQUEST_ID:
        quoted = shown.request_id[:QUOTED]
        raise FeedbackRefusedError("request_id", f"({quoted!a}) must have 1 to {MAX_REQUEST_ID} characters")
    if not shown.model_id:
        raise FeedbackRefusedError("model_id", "must not be empty")
    for field in ("request_id", "model_id", "context_id"):
        _check_text(field, (getattr(shown, field),))
    if not 1 <= shown.model_version < 1 << 63:
        raise FeedbackRefusedError("model_version", f"({shown.model_version}) must be from 1 to 2^63 - 1")
    _check_items("candidates", shown.candidates)
    num_candidates = len(shown.candidates)
    _check_numbers("experts", shown.experts, num_candidates, _are_experts, "from 0 to 2^31 - 1")
    if shown.mode not in MODES:
        raise FeedbackRefusedError("mode", f"({str(shown.mode)[:QUOTED]!a}) must be one of {', '.join(MODES)}")
    log_probability = shown.log_probability
    if shown.mode == "sampled":
        propensities = shown.inclusion_propensities
        _check_numbers("inclusion_propensities", propensities, num_candidates, _are_probabilities, "in (0, 1]")
        if log_probability is None or not -math.inf < log_probability <= 0:
            raise FeedbackRefusedError("log_probability", f"({log_probability}) must be finite and at most 0")
    elif shown.inclusion_propensities or log_probability is not None:
        field = "log_probability" if log_probability is not None else "inclusion_propensities"
        raise FeedbackRefusedError(field, "must be left out when mode is greedy")


def _check_items(field: str, items: Collection[str]) -> None:
    if not items:
        raise FeedbackRefusedError(field, "must not be empty")
    if "" in items:
        raise FeedbackRefusedError(field, "must not hold an empty id")
    _check_text(field, items)
    if len(set(items)) < len(items):
        twice = next(item for item, count in Counter(items).items() if count > 1)
        raise FeedbackRefusedError(field, f"({twice[:QUOTED]}) must be distinct")


def _check_text(field: str, texts: Collection[str]) -> None:
    """PostgreSQL's text has no NUL, and UTF-8 has no lone surrogate."""
    joined = "".join(texts)
    if "\0" in joined or not _is_utf8(joined):
        broken = next(text for text in texts if "\0" in text or not _is_utf8(text))
        raise FeedbackRefusedError(field, f"({broken[:QUOTED]!a}) must be UTF-8 text without NUL")


def _check_numbers(
    field: str, values: Sequence[Number], count: int, hold: Callable[[Sequence[Number]], bool], rule: str
) -> None:
    if len(values) != count:
        owner = "slot of the slate" if field in Feedback._fields else "candidate"
        raise FeedbackRefusedError(field, f"(length {len(values)}) must have one value per {owner}, {count}")
    if not hold(values):
        position = next(position for position, value in enumerate(values) if not hold((value,)))
        raise FeedbackRefusedError(f"{field}[{position}]", f"({values[position]}) must be {rule}")


def _are_finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _are_probabilities(values: Sequence[float]) -> bool:
    return _are_finite(values) and min(values) > 0 and max(values) <= 1  # min and max are wrong about NaN


def _are_experts(values: Sequence[int]) -> bool:
    return min(values) >= 0 and max(values) < 1 << 31


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
