"""The verdict on a candidate: promote, hold or reject, and the rule that led to it."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from offline_eval.intervals import CONFIDENCE, Estimate

Decision = Literal["promote", "hold", "reject"]

EXIT_CODES: Mapping[Decision, int] = {"promote": 0, "hold": 3, "reject": 4}
"""What a pipeline branches on; 2 stays the code of unusable input."""

BETTER_FIRST: tuple[Decision, ...] = ("promote", "hold", "reject")


class Gate(NamedTuple):
    """A condition that a candidate must meet whatever its policy value is."""

    name: str
    value: float
    rule: str
    """What `value` must be, such as `>= 0.95`."""
    passed: bool
    failing_means: Literal["hold", "reject"]
    """`hold` where too little is known, `reject` where the candidate is known to be wrong."""


class Verdict(NamedTuple):
    """A decision and what led to it."""

    decision: Decision
    difference: Estimate
    """Candidate minus baseline, with its interval."""
    margin: float
    """How far the interval must lie above 0."""
    gates: tuple[Gate, ...]
    because: str
    """The rule that decided, with its numbers, in one line."""


def judge(difference: Estimate, gates: Sequence[Gate], margin: float = 0.0) -> Verdict:
    """Decide on a candidate from its paired difference to the baseline and its gates.

    reject: a gate fails that rejects, or the whole interval lies below 0; hold: a gate fails that holds, or the
    interval reaches down to the margin; promote: the rest.

    Args:
        difference: candidate minus baseline, with its interval.
        gates: every condition that was looked at, met or not.
        margin: least gain that is worth a promotion, in the reward's unit, at least 0.
    """
    failed = {gate.failing_means: gate for gate in reversed(gates) if not gate.passed}  # the first of each kind
    interval = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"

    def verdict(decision: Decision, because: str) -> Verdict:
        return Verdict(decision, difference, margin, tuple(gates), because)

    if gate := failed.get("reject"):
        return verdict("reject", f"{gate.name} is {gate.value:.4g}, must be {gate.rule}")
    if difference.high < 0:
        return verdict("reject", f"the difference {interval} lies below 0")
    if gate := failed.get("hold"):
        return verdict("hold", f"{gate.name} is {gate.value:.4g}, must be {gate.rule}")
    if difference.low <= margin:
        return verdict("hold", f"the difference {interval} does not lie above {margin:g}")
    return verdict("promote", f"the difference {interval} lies above {margin:g}, and every gate is met")


def corrected_confidence(comparisons: int) -> float:
    """The confidence of each of several intervals that are to hold together: 1 - (1 - CONFIDENCE) / n (Bonferroni).

    The best of n candidates that are worth the same looks better than it is: each interval lies above 0 by chance in
    2.5 % of the cases, so that of ten candidates one would be promoted for nothing in up to a quarter of them.
    """
    return 1 - (1 - CONFIDENCE) / comparisons


def best_of(verdicts: Sequence[Verdict]) -> int:
    """Which verdict is the best: of the best decision, the one with the largest difference."""

    def rank(position: int) -> tuple[int, float]:
        return BETTER_FIRST.index(verdicts[position].decision), -verdicts[position].difference.mean

    return min(range(len(verdicts)), key=rank)
