from itertools import permutations

import pytest
import torch
from scipy import stats
from torch import Tensor

from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS

SCORES = torch.tensor([[0.5, -1.0, 2.0, 0.0]])
REWARDS = torch.tensor([[3.0, 1.0, 7.0, 2.0]])


def orders_and_probabilities(scores: Tensor) -> dict[tuple[int, ...], float]:
    """Plackett-Luce by enumeration: every order with its probability."""
    found = {}
    for order in permutations(range(len(scores))):
        probability = 1.0
        for slot in range(len(order)):
            probability *= float(scores.double()[list(order[slot:])].softmax(0)[0])
        found[order] = probability
    return found


@pytest.mark.parametrize(("name", "expected"), [("optimal", [2, 0, 3, 1]), ("anti", [1, 3, 0, 2])])
def test_fixed_orders(name: str, expected: list[int]) -> None:
    ranker = LATE_STAGE_RANKERS[name]
    assert ranker.rank(SCORES, 4, torch.Generator()).tolist() == [expected]
    assert ranker.expected_rewards(SCORES, REWARDS, 4, torch.Generator()).tolist() == [REWARDS[0, expected].tolist()]


@pytest.mark.parametrize(("name", "scores"), [("noisy", SCORES[0]), ("uniform", torch.zeros(4))])
def test_random_orders_are_plackett_luce(name: str, scores: Tensor) -> None:
    draws = 20_000
    slates = LATE_STAGE_RANKERS[name].rank(SCORES.expand(draws, -1), 4, torch.Generator().manual_seed(0))
    probabilities = orders_and_probabilities(scores)
    observed = [int((slates == torch.tensor(order)).all(1).sum()) for order in probabilities]
    expected = [probability * draws for probability in probabilities.values()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize(("name", "scores"), [("noisy", SCORES[0]), ("uniform", torch.zeros(4))])
def test_expected_rewards_of_random_orders_by_enumeration(name: str, scores: Tensor) -> None:
    exact = torch.zeros(3)
    for order, probability in orders_and_probabilities(scores).items():
        exact += probability * REWARDS[0, list(order)][:3]
    contexts = 400  # equal contexts: their mean averages the draws of the later slots
    found = LATE_STAGE_RANKERS[name].expected_rewards(
        SCORES.expand(contexts, -1), REWARDS.expand(contexts, -1), 3, torch.Generator().manual_seed(0)
    )
    assert found[0, 0].item() == pytest.approx(exact[0].item(), abs=1e-4), "the first slot is exact"
    torch.testing.assert_close(found.mean(0), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", sorted(LATE_STAGE_RANKERS))
def test_a_slate_holds_distinct_candidates(name: str) -> None:
    scores = torch.zeros(50, 6)
    slates = LATE_STAGE_RANKERS[name].rank(scores, 6, torch.Generator().manual_seed(0))
    assert all(sorted(slate) == list(range(6)) for slate in slates.tolist())
