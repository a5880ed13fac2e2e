from itertools import permutations

import pytest
import torch
from scipy import stats

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.policy import greedy_candidates, gumbel, sample_candidates
from esr_trainer.quotas import expert_of_position, quotas


def test_quotas_give_the_first_experts_what_is_left_over() -> None:
    assert quotas(10, 4) == [3, 3, 2, 2]
    assert quotas(2, 3) == [1, 1, 0]
    assert expert_of_position(5, 2) == [0, 0, 0, 1, 1]


def test_greedy_skips_what_earlier_experts_took_and_fills_up() -> None:
    # Expert 0 takes its best two, 4 and 3; expert 1 likes 4, 3, 2, 1 in this order and gets 2 and 1.
    logits = torch.tensor([[[0.0, 1, 2, 3, 4], [0, 5, 6, 7, 8]]])
    assert greedy_candidates(logits, 4).tolist() == [[4, 3, 2, 1]]


@pytest.mark.parametrize(("num_experts", "num_candidates"), [(1, 3), (2, 3), (3, 5), (4, 2)])
def test_candidates_are_distinct(num_experts: int, num_candidates: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((500, num_experts, 5), generator=generator)
    for candidates in (greedy_candidates(logits, num_candidates), sample_candidates(logits, num_candidates, generator)):
        assert all(len(set(row)) == num_candidates for row in candidates.tolist())


@pytest.mark.parametrize("num_experts", [1, 2])
def test_drawn_sets_have_the_probability_that_v_says(num_experts: int) -> None:
    draws, num_candidates = 40_000, 3
    logits = torch.randn((1, num_experts, 5), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = sample_candidates(logits.expand(draws, -1, -1), num_candidates, torch.Generator().manual_seed(4))
    sets = torch.tensor(list(permutations(range(5), num_candidates)))
    expected = ESTIMATORS["v"](logits.expand(len(sets), -1, -1), sets[:, :1], sets)[:, 0].exp()
    code = torch.tensor([25, 5, 1])
    observed = torch.bincount((drawn * code).sum(1), minlength=125)[(sets * code).sum(1)]
    assert stats.chisquare(observed.numpy(), (expected * draws).numpy()).pvalue > 1e-3


def test_experts_draw_independent_noise() -> None:
    logits = torch.zeros(20_000, 2, 4)
    drawn = sample_candidates(logits, 2, torch.Generator().manual_seed(0))
    # Equal logits: expert 0 takes each item with 1/4, expert 1 each of the other three with 1/3, whatever was taken.
    table = torch.zeros(4, 4)
    table.index_put_((drawn[:, 0], drawn[:, 1]), torch.ones(len(drawn)), accumulate=True)
    off_diagonal = table[~torch.eye(4, dtype=torch.bool)]
    assert stats.chisquare(off_diagonal.numpy()).pvalue > 1e-3


def test_noise_is_gumbel_and_finite() -> None:
    noise = gumbel(torch.Size([200_000]), torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0))
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3
    assert gumbel(torch.Size([1 << 22]), torch.zeros(()), torch.Generator().manual_seed(1)).isfinite().all()


def test_sampling_depends_on_the_generator_alone() -> None:
    logits = torch.zeros(3, 2, 9)
    first, again, other = (sample_candidates(logits, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
