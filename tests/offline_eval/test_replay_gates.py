"""The gates of a replay."""

import pytest

from offline_eval.intervals import Estimate
from offline_eval.replay.replay_gates import context_gate, drift_gate, enough_gate, segment_gate, skew_gate
from offline_eval.replay.segments import SegmentValue
from offline_eval.replay.served import Served

SAME = Served("top1-0", "flat", Estimate(2.0, 1.9, 2.1), Estimate(0.0, 0.0, 0.0), 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("served", "passed"),
    [
        (SAME, True),
        (SAME._replace(regret=1e-6), True),
        (SAME._replace(regret=1e-4), False),
        (SAME._replace(index_kind="ivf", regret=None, recall=0.96), True),
        (SAME._replace(index_kind="ivf", regret=None, recall=0.94), False),
    ],
)
def test_what_is_served_is_what_was_trained(served: Served, passed: bool) -> None:
    gate = skew_gate(served, 0.95)
    assert (gate.passed, gate.failing_means) == (passed, "reject")


@pytest.mark.parametrize(("skew", "passed"), [(0.0, True), (-0.019, True), (-0.021, False), (0.021, False)])
def test_what_is_served_is_worth_what_was_trained_neither_less_nor_more(skew: float, passed: bool) -> None:
    for mean in (2.0, -2.0):
        gate = drift_gate(SAME._replace(skew=Estimate(skew, skew, skew)), Estimate(mean, mean - 0.1, mean + 0.1))
        assert (gate.passed, gate.failing_means) == (passed, "reject")


@pytest.mark.parametrize(("low", "passed"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_a_retriever_must_know_its_context(low: float, passed: bool) -> None:
    gate = context_gate(Estimate(0.3, low, 0.5))
    assert (gate.passed, gate.failing_means) == (passed, "reject")


@pytest.mark.parametrize(("contexts", "passed"), [(29, False), (30, True)])
def test_few_contexts_hold(contexts: int, passed: bool) -> None:
    gate = enough_gate(contexts)
    assert (gate.passed, gate.failing_means) == (passed, "hold")


def segment(value: str, contexts: int, low: float, high: float) -> SegmentValue:
    return SegmentValue(value, contexts, SAME.policy_value, Estimate((low + high) / 2, low, high))


def test_the_worst_segment_may_not_surely_lose() -> None:
    wins, unsure, loses = segment("a", 50, 0.1, 0.3), segment("b", 50, -0.3, 0.1), segment("c", 50, -0.3, -0.1)
    assert segment_gate("city", [wins, unsure]).passed
    gate = segment_gate("city", [wins, loses, unsure])
    assert (gate.passed, gate.failing_means, gate.value) == (False, "hold", -0.1)
    assert "city c" in gate.name


def test_small_segments_decide_nothing() -> None:
    wins, loses = segment("a", 50, 0.1, 0.3), segment("c", 29, -0.3, -0.1)
    assert segment_gate("city", [wins, loses]).passed
    gate = segment_gate("city", [loses])
    assert (gate.passed, gate.failing_means) == (False, "hold")
