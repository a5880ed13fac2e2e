"""The gates of a verdict by replay: what a candidate must meet whatever its policy value is."""

from collections.abc import Sequence
from typing import NamedTuple

from offline_eval.intervals import Estimate
from offline_eval.replay.comparison import Judged
from offline_eval.replay.segments import SegmentValue
from offline_eval.replay.served import Served
from offline_eval.verdict import Gate
from serving.export_check import TIE

LEAST_CONTEXTS = 30
"""Contexts that a bootstrap interval needs to mean something; smaller segments are shown and decide nothing."""
DRIFT = 0.01
"""By what share of the trained policy value the served one may be off."""


class Bars(NamedTuple):
    """How high a candidate must jump."""

    margin: float = 0.0
    """Least gain that is worth a promotion, in the reward's unit."""
    min_recall: float = 0.95
    """Least recall@K of an approximate index."""
    segmented_by: str | None = None
    """The column whose segments may not lose; None for no segments."""


def replay_gates(judged: Judged, num_contexts: int, bars: Bars) -> tuple[Gate, ...]:
    """Every gate of a candidate that was replayed, those that reject first."""
    gates = []
    if judged.served:
        gates += [skew_gate(judged.served, bars.min_recall), drift_gate(judged.served, judged.policy_value)]
    if judged.lost_when_permuted:
        gates.append(context_gate(judged.lost_when_permuted))
    gates.append(enough_gate(num_contexts))
    if bars.segmented_by:
        gates.append(segment_gate(bars.segmented_by, judged.segments))
    return tuple(gates)


def skew_gate(served: Served, min_recall: float) -> Gate:
    """Reject where the bundle serves other candidates than were trained.

    With an exact index every position must hold an item that is greedy but for TIE in float64; an approximate one may
    miss some, and is held to its recall@K.
    """
    if served.regret is None:
        name = f"recall@K of the {served.index_kind} index"
        return Gate(name, served.recall, f">= {min_recall:g}", served.recall >= min_recall, "reject")
    return Gate("train/serve skew, largest of a logit", served.regret, f"<= {TIE:g}", served.regret <= TIE, "reject")


def drift_gate(served: Served, trained: Estimate) -> Gate:
    """Reject where what is served is not worth what was trained, be it less or more: then it is something else."""
    drift = abs(served.skew.mean / trained.mean) if trained.mean else abs(served.skew.mean)
    return Gate("train/serve skew of the policy value, as a share", drift, f"<= {DRIFT:g}", drift <= DRIFT, "reject")


def context_gate(lost_when_permuted: Estimate) -> Gate:
    """Reject an ESR that would be worth as much if every context were answered as another: it ignores its context."""
    low = lost_when_permuted.low
    return Gate("value lost when contexts are permuted (low end)", low, "> 0", low > 0, "reject")


def enough_gate(num_contexts: int) -> Gate:
    """Hold where there are too few contexts for an interval."""
    return Gate("contexts", num_contexts, f">= {LEAST_CONTEXTS}", num_contexts >= LEAST_CONTEXTS, "hold")


def segment_gate(column: str, segments: Sequence[SegmentValue]) -> Gate:
    """Hold where a segment surely loses: its whole interval lies below 0; of several the one that surely loses most."""
    highs = {
        segment.value: segment.difference.high
        for segment in segments
        if segment.difference and segment.num_contexts >= LEAST_CONTEXTS
    }
    if not highs:
        return Gate(f"segments of {column} with {LEAST_CONTEXTS} contexts", 0, ">= 1", False, "hold")
    worst = min(highs, key=highs.__getitem__)
    name = f"difference of the worst segment, {column} {worst} (high end)"
    return Gate(name, highs[worst], ">= 0", highs[worst] >= 0, "hold")
