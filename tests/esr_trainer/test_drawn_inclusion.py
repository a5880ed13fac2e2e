"""The inclusion probabilities of draws: by enumeration, and where they are left to ca-poisson."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from esr_trainer.drawn_inclusion import log_drawn_inclusion
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_inclusion_probabilities


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def enumerated(logits: Tensor, num_candidates: int) -> Tensor:
    """pi of every item, the sum over all ordered candidates: (1, M, N) -> (N,)."""
    sets = torch.tensor(list(permutations(range(logits.shape[2]), num_candidates)))
    probability = ESTIMATORS["v"](logits.expand(len(sets), -1, -1), sets[:, :1], sets)[:, 0].exp()
    return torch.stack([probability[(sets == item).any(1)].sum() for item in range(logits.shape[2])])


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
@pytest.mark.parametrize(("num_experts", "num_items", "k"), [(1, 30, 1), (1, 30, 2), (2, 30, 2), (3, 30, 2), (2, 9, 4)])
def test_exact_by_enumeration(num_experts: int, num_items: int, k: int, scale: float) -> None:
    logits = normal(1, num_experts, num_items, seed=k, scale=scale)
    found = log_drawn_inclusion(logits, k)[0].exp()
    torch.testing.assert_close(found, enumerated(logits, k), rtol=0, atol=1e-12)


def test_two_draws_by_hand() -> None:
    logits = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]], dtype=torch.float64).log()
    # the second expert finds 1 - .2 = .8 after item 0, .7 after 1, .5 after 2: .6/.8 + .3/.7 + .1/.5
    pi = [0.6 + 0.2 * (0.3 / 0.7 + 0.1 / 0.5), 0.3 + 0.3 * (0.6 / 0.8 + 0.1 / 0.5), 0.1 + 0.5 * (0.6 / 0.8 + 0.3 / 0.7)]
    assert log_drawn_inclusion(logits, 2)[0].exp().tolist() == pytest.approx(pi, abs=1e-15)


@pytest.mark.parametrize("lead", [50.0, 1e4])
def test_an_item_far_ahead_leaves_the_second_draw_to_the_others(lead: float) -> None:
    logits = torch.tensor([[[lead, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    pi = torch.cat([torch.ones(1), logits[0, 0, 1:].softmax(0)])
    torch.testing.assert_close(log_drawn_inclusion(logits, 2)[0].exp(), pi, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("num_experts", "k"), [(1, 9), (2, 17), (1, 100)])
def test_is_ca_poisson_where_quotas_are_large(num_experts: int, k: int) -> None:
    logits = normal(2, num_experts, 150, seed=1)
    assert torch.equal(log_drawn_inclusion(logits, k), log_inclusion_probabilities(logits, k))


def test_only_contexts_that_cannot_be_followed_are_ca_poissons() -> None:
    logits = normal(3, 1, 50, seed=9, scale=5.0)
    logits[1] *= 100  # wider than float64 can hold
    found, poisson = log_drawn_inclusion(logits, 3), log_inclusion_probabilities(logits, 3)
    assert torch.equal(found[1], poisson[1])
    assert not torch.isclose(found[0], poisson[0], rtol=0, atol=1e-3).all()


def test_contexts_come_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = normal(7, 2, 40, seed=3, scale=3.0)
    found = log_drawn_inclusion(logits, 6)
    monkeypatch.setattr("esr_trainer.drawn_inclusion.CHANCES", 1)
    torch.testing.assert_close(log_drawn_inclusion(logits, 6), found, rtol=0, atol=1e-12)


def test_all_items_are_sure_when_all_are_taken() -> None:
    assert log_drawn_inclusion(normal(2, 2, 5, seed=1), 5).tolist() == [[0.0] * 5] * 2
