"""The law of lazily drawn candidates, and what the columns' sums estimate."""

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from esr_trainer.catalogue_index import build_all
from esr_trainer.catalogue_sample import (
    Head,
    columns_of,
    distinct,
    early,
    head_of,
    is_among,
    lazy_candidates,
    positions_in,
    without,
)
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_stopping_times
from esr_trainer.policy import sample_candidates

NO_TAIL = 1e-12
"""A share at which no tail item is ever early: the law without the tail."""


class Dense:
    """Logits that are all there, (B, M, N)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def own(self, items: Tensor) -> Tensor:
        return self.logits.gather(2, items[:, None].expand(-1, self.logits.shape[1], -1))

    def shared(self, items: Tensor, expert: int) -> Tensor:
        return self.logits[:, expert, items]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stale_world(num_items: int, num_experts: int, stale: float, size: int, spread: float = 0.6) -> tuple[Tensor, Head]:
    """Logits of 4 contexts, (4, M, N), and the head that FAISS finds by embeddings that have moved since."""
    generator = seeded(3)
    items = torch.randn((num_experts, num_items, 6), generator=generator)
    contexts = torch.randn((4, num_experts, 6), generator=generator) * spread
    before = items + stale * torch.randn(items.shape, generator=generator)
    found = []
    for expert, index in enumerate(build_all(before.numpy(), 0)):
        index.nprobe = 1  # of num_items / 32 clusters
        found.append(torch.from_numpy(index.search(contexts[:, expert].contiguous().numpy(), size)[1]))
    return torch.einsum("bmd,mnd->bmn", contexts, items), head_of(torch.cat(found, dim=1))


def draws(logits: Tensor, head: Head, num_candidates: int, share: float, count: int) -> Tensor:
    """(count, B, K): apart from each other, since what is early is drawn once per call."""
    generator, law = seeded(11), Dense(logits)
    return torch.stack(
        [lazy_candidates(law, head, logits.shape[2], num_candidates, share, generator) for _ in range(count)]
    )


def chi_square(logits: Tensor, drawn: Tensor) -> float:
    """The smallest p-value, over contexts, of ordered pairs of 12 items, (count, B, 2), against their exact law."""
    sets, count = torch.tensor(list(permutations(range(12), 2))), len(drawn)
    p_values = []
    for row, own in enumerate(logits):
        exact = ESTIMATORS["v"](own.expand(len(sets), -1, -1).double(), sets[:, :1], sets)[:, 0].exp()
        code = drawn[:, row, 0] * 12 + drawn[:, row, 1]
        observed = torch.bincount(code, minlength=144)[sets[:, 0] * 12 + sets[:, 1]]
        assert observed.sum() == count, "no pair is an item twice"
        order = exact.argsort()
        cells = (exact[order].cumsum(0) * 40).long().clamp(max=39)  # cells of at least about count / 40 expected
        counts = torch.zeros(40, dtype=torch.float64).index_add_(0, cells, observed[order].double())
        expected = torch.zeros_like(counts).index_add_(0, cells, exact[order])
        some = expected > 0
        p_values.append(stats.chisquare(counts[some], count * expected[some] / expected[some].sum()).pvalue)
    return min(p_values)


@pytest.mark.parametrize("num_experts", [1, 2])
def test_ordered_candidates_have_the_law_of_the_whole_catalogue(num_experts: int) -> None:
    """By chi-square, with a head of 3 of 12 items, found by embeddings that have moved since; not so without a tail."""
    logits, head = stale_world(12, num_experts, stale=1.0, size=3 // num_experts, spread=0.3)
    best = logits.amax(dim=1).topk(3).indices
    assert (is_among(best, head.items).sum(dim=1) < 3).all(), "the head misses some of the best"
    assert chi_square(logits, draws(logits, head, 2, 0.97, 2000)) > 0.01
    assert chi_square(logits, draws(logits, head, 2, NO_TAIL, 2000)) < 1e-12


def inclusion_z(logits: Tensor, head: Head, share: float, count: int) -> np.ndarray:
    """How far each item's inclusion frequency is from the whole catalogue's, in standard errors."""
    batch, _, num_items = logits.shape
    lazy = draws(logits, head, 10, share, count)
    generator, whole = seeded(12), torch.zeros(batch, num_items)
    for _ in range(2 * count):
        whole.scatter_add_(1, sample_candidates(logits, 10, generator), torch.ones(batch, 10))
    mine = torch.zeros(batch, num_items).scatter_add_(1, lazy.transpose(0, 1).flatten(1), torch.ones(batch, 10 * count))
    pooled = (mine + whole) / (3 * count)
    error = (pooled * (1 - pooled) * (1 / count + 1 / (2 * count))).sqrt()
    common = pooled > 25 / count
    z: np.ndarray = ((mine / count - whole / (2 * count)) / error)[common].numpy()
    return z


@pytest.mark.parametrize("num_experts", [1, 3])
def test_inclusion_frequencies_are_those_of_the_whole_catalogue(num_experts: int) -> None:
    """By Kolmogorov-Smirnov, 400 items, one of 12 clusters read, embeddings long moved; not so without a tail."""
    logits, head = stale_world(400, num_experts, stale=0.7, size=24 // num_experts)
    best = logits.amax(dim=1).topk(10).indices
    assert is_among(best, head.items).float().mean() < 0.7, "the head misses a good part of the best"
    assert stats.kstest(inclusion_z(logits, head, 0.9, 1500), "norm").pvalue > 0.01
    assert stats.kstest(inclusion_z(logits, head, NO_TAIL, 1500), "norm").pvalue < 1e-12


def test_a_small_share_loses_no_more_than_the_inclusion_above_it() -> None:
    """A tail item is drawn with its probability, or with the share p that is kept of the tail, up to 0.03."""
    logits, head = stale_world(400, 1, stale=0.7, size=24)
    count, share = 800, 0.05
    lazy, whole = (draws(logits, head, 10, one, count) for one in (share, 1.0))
    for row in range(4):
        kept, pi = (torch.bincount(of[:, row].flatten(), minlength=400) / count for of in (lazy, whole))
        tail = torch.ones(400, dtype=torch.bool).scatter_(0, head.items[row], False)
        short = (pi.clamp(max=share) - kept)[tail]
        assert short.max() < 0.03
        assert (kept[tail] < share + 0.03).all()


def test_a_subset_is_as_likely_as_any_other() -> None:
    generator = seeded(5)
    for count in (2, 4):
        drawn = [tuple(distinct(6, count, generator).tolist()) for _ in range(1500)]
        assert all(len(set(one)) == count and list(one) == sorted(one) for one in drawn)
        _, observed = np.unique(drawn, axis=0, return_counts=True)
        assert len(observed) == math.comb(6, count)
        assert stats.chisquare(observed).pvalue > 0.01


def test_each_item_is_early_on_its_own() -> None:
    generator = seeded(6)
    sizes = np.array([len(early(1000, 0.3, generator)) for _ in range(2000)])
    assert abs(sizes.mean() - 300) < 2
    assert abs(sizes.var() / 210 - 1) < 0.15


def test_members_of_a_sample() -> None:
    sample, items = torch.tensor([2, 5, 9]), torch.tensor([[9, 1, 2], [10, 5, 5]])
    assert positions_in(sample, items).tolist() == [[2, 3, 0], [3, 1, 1]]
    assert without(torch.zeros(2, 3), sample, items).isinf().tolist() == [[True, False, True], [False, True, False]]
    assert is_among(items, torch.tensor([[9, 3], [5, 5]])).tolist() == [[True, False, False], [False, True, True]]
    assert not is_among(items, items[:, :0]).any()


def test_a_head_holds_each_item_once() -> None:
    head = head_of(torch.tensor([[7, 3, 7, -1], [-1, -1, -1, -1]]))
    assert head.items.tolist() == [[7, 3, 7, 7], [0, 0, 0, 0]]
    assert head.is_there.tolist() == [[True, True, False, False], [True, False, False, False]]


def columns_many_times(
    logits: Tensor, head: Head, size: int, count: int, measure: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """What `measure` makes of the columns' logits and weights, (count, ...)."""
    generator, candidates = seeded(8), sample_candidates(logits, 10, seeded(7))
    found = []
    for _ in range(count):
        columns = columns_of(head, candidates, logits.shape[2], size, generator)
        law = Dense(logits)
        tail = torch.stack([law.shared(columns.tail, expert) for expert in range(logits.shape[1])], dim=1)
        found.append(measure(torch.cat([law.own(columns.own), tail], dim=2), columns.log_weight))
    return torch.stack(found)


def test_normalisers_are_unbiased_and_their_logarithms_as_low_as_stated() -> None:
    logits, head = stale_world(400, 2, stale=0.7, size=12)
    exact = logits.double().logsumexp(dim=2)
    found = columns_many_times(
        logits.double(), head, 60, 2000, lambda f, log_weight: (f + log_weight[:, None]).logsumexp(dim=2)
    )
    share = (found - exact).exp()  # of the exact normaliser
    error = share.std(dim=0) / 2000**0.5
    assert ((share.mean(dim=0) - 1).abs() < 4 * error).all()
    assert (error > 0).all()
    variance = share.var(dim=0)
    low = exact - found.mean(dim=0)
    assert ((low - variance / 2).abs() < 0.25 * variance + 4 * error).all()


def test_stopping_times_are_near_the_exact_ones() -> None:
    """tau's error shrinks with the tail: its bias is of the order of its variance."""
    logits, head = stale_world(400, 2, stale=0.7, size=12)
    exact = log_stopping_times(logits, 10)
    errors = []
    for size in (60, 240):
        found = columns_many_times(logits, head, size, 250, lambda f, weight: log_stopping_times(f, 10, weight))
        errors.append((found - exact).double())
    small, large = errors
    assert (large.std(dim=0) < 0.6 * small.std(dim=0)).all()
    assert (small.mean(dim=0).abs() < small.var(dim=0) + 4 * small.std(dim=0) / 250**0.5).all()


@pytest.mark.parametrize("size", [400, 1000])
@pytest.mark.parametrize("name", ["v", "v-swr", "ca", "ca-swr", "ca-poisson"])
def test_a_tail_of_all_items_gives_the_exact_log_probability(name: str, size: int) -> None:
    logits, head = stale_world(400, 2, stale=0.7, size=12)
    logits = logits.double()
    candidates = sample_candidates(logits, 10, seeded(7))
    columns = columns_of(head, candidates, 400, size, seeded(1))
    place = columns.num_own - 10 + torch.arange(10).expand(4, -1)
    law = Dense(logits)
    tail = torch.stack([law.shared(columns.tail, expert) for expert in range(2)], dim=1)
    f = torch.cat([law.own(columns.own), tail], dim=2)
    found = ESTIMATORS[name](f, place[:, 3:6], place, columns.log_weight)
    expected = ESTIMATORS[name](logits, candidates[:, 3:6], candidates)
    if name == "ca":  # its greedy items are the head's
        assert found.isfinite().all()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
