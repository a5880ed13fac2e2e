"""The rule of the verdict."""

import pytest

from offline_eval.intervals import Estimate
from offline_eval.verdict import EXIT_CODES, Gate, best_of, corrected_confidence, judge

GAIN = Estimate(0.3, 0.1, 0.5)
UNKNOWN = Estimate(0.1, -0.1, 0.3)
LOSS = Estimate(-0.3, -0.5, -0.1)
MET = Gate("index recall", 0.99, ">= 0.95", True, "reject")
SKEWED = Gate("skew", 0.2, "<= 1e-5", False, "reject")
THIN = Gate("effective sample size", 12, ">= 100", False, "hold")


@pytest.mark.parametrize(
    ("difference", "gates", "margin", "decision", "said"),
    [
        (GAIN, [MET], 0.0, "promote", "+0.3000 (+0.1000 to +0.5000) lies above 0"),
        (GAIN, [MET], 0.2, "hold", "does not lie above 0.2"),
        (GAIN, [MET, THIN], 0.0, "hold", "effective sample size is 12, must be >= 100"),
        (GAIN, [MET, THIN, SKEWED], 0.0, "reject", "skew is 0.2, must be <= 1e-5"),
        (UNKNOWN, [MET], 0.0, "hold", "does not lie above 0"),
        (LOSS, [MET, THIN], 0.0, "reject", "lies below 0"),
    ],
)
def test_interval_and_gates_decide(difference, gates, margin, decision, said):
    verdict = judge(difference, gates, margin)
    assert verdict.decision == decision
    assert said in verdict.because
    assert verdict.gates == tuple(gates)


def test_every_decision_has_its_own_exit_code_and_none_is_that_of_unusable_input():
    assert EXIT_CODES == {"promote": 0, "hold": 3, "reject": 4}


def test_the_best_of_several_is_by_decision_and_then_by_difference():
    promoted, better = judge(GAIN, [MET]), judge(Estimate(0.4, 0.1, 0.6), [MET])
    held, rejected = judge(Estimate(0.9, -0.1, 2.0), [MET]), judge(Estimate(2.0, 1.0, 3.0), [SKEWED])
    assert best_of([rejected, held, promoted, better]) == 3
    assert best_of([rejected, held]) == 1
    assert best_of([promoted]) == 0


@pytest.mark.parametrize(("comparisons", "confidence"), [(1, 0.95), (2, 0.975), (10, 0.995)])
def test_the_error_is_shared_out_among_the_comparisons(comparisons, confidence):
    assert corrected_confidence(comparisons) == pytest.approx(confidence)
