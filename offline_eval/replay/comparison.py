"""What `compare` finds, and its form in JSON.

The JSON of `--json`, for reports and pipelines, is `Comparison` field by field, its tuples and mappings as lists and
objects, None as null: `{"world", "num_contexts", "system": {"lsr", "slot_weights", "candidates", "slate"}, "baseline",
"confidence", "segmented_by", "segment_confidence", "judged": [...], "uniform_policy_value", "optimal_policy_value",
"best", "exit_code"}`. `judged` holds popularity first, then the baseline if a run is one, then the candidates in the
order in which they were named, each `{"name", "policy_value", "difference", "permuted", "lost_when_permuted",
"measures": {a name of LIST_MEASURES: number}, "served", "segments": [...], "verdict"}`; an estimate is `{"mean", "low",
"high"}`, a verdict `{"decision", "difference", "margin", "gates": [{"name", "value", "rule", "passed",
"failing_means"}], "because"}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from offline_eval.intervals import Estimate
from offline_eval.replay.segments import SegmentValue
from offline_eval.replay.served import Served
from offline_eval.verdict import EXIT_CODES, Verdict, best_of


class Judged(NamedTuple):
    """One policy's result."""

    name: str
    """Its run or checkpoint directory, or `popularity`."""
    policy_value: Estimate
    """Of the candidates that the checkpoint picks."""
    difference: Estimate | None
    """Paired difference to the baseline, of what is served where that was looked at, at `confidence`; None for the
    baseline itself."""
    permuted: Estimate | None
    """Policy value when every context is answered as if it were another. None for popularity, which knows nothing."""
    lost_when_permuted: Estimate | None
    """What that costs, paired: what the ESR knows of its context."""
    measures: Mapping[str, float | None]
    """LIST_MEASURES of the candidates that the checkpoint picks."""
    segments: tuple[SegmentValue, ...]
    """By the values of a column, if one was named, at `segment_confidence`."""
    served: Served | None
    """What its bundle serves; of candidates alone."""
    verdict: Verdict | None
    """Of candidates alone."""


class Comparison(NamedTuple):
    """What `compare` found."""

    world: str
    num_contexts: int
    system: Mapping[str, str | int]
    baseline: str
    confidence: float
    """Of the differences' intervals: corrected for the number of candidates."""
    segmented_by: str | None
    """The column of the segments."""
    segment_confidence: float | None
    """Of the segments' intervals: corrected for the number of candidates and segments."""
    judged: tuple[Judged, ...]
    uniform_policy_value: float
    optimal_policy_value: float

    @property
    def candidates(self) -> list[tuple[Judged, Verdict]]:
        """Those that got a verdict."""
        return [(judged, judged.verdict) for judged in self.judged if judged.verdict]

    @property
    def best(self) -> tuple[Judged, Verdict]:
        """The candidate with the best verdict."""
        candidates = self.candidates
        return candidates[best_of([verdict for _, verdict in candidates])]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        judged, verdict = self.best
        return {**plain(self), "best": judged.name, "exit_code": EXIT_CODES[verdict.decision]}


def plain(value: Any) -> Any:
    """NamedTuples as objects by their fields, other tuples as lists, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(part) for part in value]
    return value
