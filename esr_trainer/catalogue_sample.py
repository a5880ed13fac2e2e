"""A large catalogue by a head and a random rest: candidates by lazy Gumbel top-k, and columns that stand for all items.

Each context has a head, the items that an index finds best, however stale or approximate; the rest is its tail. Nothing
here walks the catalogue, and nothing rests on the head being right: an item that it misses is in the tail.

**Candidates.** Successive sampling is an exponential race: item a arrives at E_a e^-f(a), E_a ~ Exp(1), and the first K
are the candidates (Gumbel top-k of f(a) - log E_a). A tail item matters only if it is early, so only the early ones are
drawn: each is kept with probability p, and if it is, E_a is drawn from below its p-quantile, E_a = -log(1 - p U). That
is the race of the whole catalogue as long as no tail item that was not kept, E_a >= -log(1 - p), comes among the first
K: the lazy Gumbel-max of Mussmann et al. 2017 ("Fast amortized inference and learning in log-linear models with
randomly perturbed MAP inference"), with the early tail chosen by its noise. So a tail item that is a candidate with a
probability well below p is drawn by its law, and one that the head misses though it is likelier, with about p. One
choice of tail items serves a whole batch, so that their logits are one matrix product; each context has its own race.

**Columns.** Normalisers are sums over the catalogue: head and candidates exactly, and a second tail, of S items drawn
without replacement and apart from the candidates, each for (N - n) / (S - s) items, n what is exact, s how many of the
S are. Given the candidates such a sum is unbiased (Horvitz-Thompson); its logarithm is too low by half the sum's
relative variance to first order.

Axes: B batch, M experts, N items, H head, K positions, S tail, J any items.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from esr_trainer.policy import gumbel, in_turn

SMALLEST = 2.0**-24
"""What takes the place of a uniform draw of exactly 0, whose item would come before all others."""


class ItemLogits(Protocol):
    """Logits of some items of a catalogue, for a batch of contexts."""

    def own(self, items: Tensor) -> Tensor:
        """Of each context's own items: (B, J) -> (B, M, J)."""

    def shared(self, items: Tensor, expert: int) -> Tensor:
        """Of one expert, of the same items for all: (J,) -> (B, J)."""


class Head(NamedTuple):
    """The items that are sought out in each context."""

    items: Tensor
    """(B, H)."""
    is_there: Tensor
    """(B, H); not so for a place that holds none, or one that an earlier place holds."""


def head_of(found: Tensor) -> Head:
    """The head of what was found, each item once: (B, H) items, -1 for none."""
    found = found.where(found >= 0, found.amax(dim=1, keepdim=True).clamp(min=0))
    ordered, place = found.sort(dim=1, stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return Head(found, torch.empty_like(is_first).scatter_(1, place, is_first))


def distinct(num_items: int, count: int, generator: torch.Generator) -> Tensor:
    """Items drawn without replacement, each subset as likely, in ascending order: (count,), count at most N."""
    if 2 * count > num_items:
        return torch.randperm(num_items, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.long)
    while len(drawn) < count:  # what comes again is drawn anew
        more = torch.randint(num_items, (count - len(drawn),), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn


def early(num_items: int, share: float, generator: torch.Generator) -> Tensor:
    """The items whose noise is early: each with probability `share`, independently, in ascending order."""
    rates = torch.tensor([float(num_items), share], dtype=torch.float64)
    count = int(torch.binomial(rates[0], rates[1], generator=generator))
    return distinct(num_items, count, generator)


def positions_in(sample: Tensor, items: Tensor) -> Tensor:
    """Where items stand in a sample; its length for those that do not: (J,) ascending, (B, H) -> (B, H)."""
    place = torch.searchsorted(sample, items)
    padded = torch.cat([sample, sample.new_full((1,), -1)])
    return place.where(padded[place] == items, len(sample))


def without(values: Tensor, sample: Tensor, items: Tensor) -> Tensor:
    """Values of a sample's items, -inf for each context's own items: (B, J), (J,), (B, H) -> (B, J)."""
    padded = torch.nn.functional.pad(values, (0, 1))
    return padded.scatter_(1, positions_in(sample, items), -torch.inf)[:, :-1]


def lazy_candidates(
    logits: ItemLogits, head: Head, num_items: int, num_candidates: int, share: float, generator: torch.Generator
) -> Tensor:
    """Draw ordered candidates from the mixture of Plackett-Luce over the whole catalogue, without walking it.

    Args:
        logits: of any items.
        head: what is raced in full.
        num_items: N.
        num_candidates: K, at most H.
        share: p, the share of the tail that may be early; 1 draws from the whole catalogue.
        generator: the source of every draw.

    Returns:
        Items, (B, K), in the order of the positions.
    """
    return in_turn(*lazy_races(logits, head, num_items, num_candidates, share, generator), num_candidates)


def lazy_races(
    logits: ItemLogits, head: Head, num_items: int, num_candidates: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Every expert's own race over the catalogue; arguments as of `lazy_candidates`.

    Returns:
        The keys of its first K, falling, and their items, (B, M, K) each; -inf and any item where fewer were early.
    """
    raced = []
    for expert, rates in enumerate(logits.own(head.items).unbind(dim=1)):
        tail = early(num_items, share, generator)
        of_tail = logits.shared(tail, expert)
        noise = torch.rand(of_tail.shape, generator=generator, dtype=of_tail.dtype)
        late = noise.clamp_(min=SMALLEST).mul_(-share).log1p_().neg_().log_()  # log E
        of_own = (rates + gumbel(rates.shape, rates, generator)).masked_fill(~head.is_there, -torch.inf)
        keys = torch.cat([of_own, without(of_tail - late, tail, head.items)], dim=1)
        room = max(0, num_candidates - keys.shape[1])
        first = torch.nn.functional.pad(keys, (0, room), value=-torch.inf).topk(num_candidates)
        raced.append((first.values, items_at(first.indices, head, tail)))
    keys, items = (torch.stack(parts, dim=1) for parts in zip(*raced, strict=True))
    return keys, items


def items_at(columns: Tensor, head: Head, tail: Tensor) -> Tensor:
    """The items of columns of a head and then a tail, any of one behind: (B, K), (J,) -> (B, K)."""
    width = head.items.shape[1]
    of_head = head.items.gather(1, columns.clamp(max=width - 1))
    padded = torch.cat([tail, tail.new_zeros(1)])  # a tail can be empty
    return of_head.where(columns < width, padded[(columns - width).clamp(0, len(tail))])


def is_among(items: Tensor, others: Tensor) -> Tensor:
    """Whether each item is one of a context's others: (B, J), (B, K) -> (B, J)."""
    if not others.shape[1]:
        return torch.zeros_like(items, dtype=torch.bool)
    ordered = others.sort(dim=1).values
    place = torch.searchsorted(ordered, items.contiguous()).clamp_(max=others.shape[1] - 1)
    return ordered.gather(1, place) == items


class Columns(NamedTuple):
    """What stands for the whole catalogue: H + K items of each context's own, then S that all contexts share."""

    own: Tensor
    """Head and candidates, (B, H + K)."""
    tail: Tensor
    """(S,), ascending."""
    log_weight: Tensor
    """log of how many items a column stands for, (B, H + K + S): 0 or -inf for its own, -inf for what is exact."""

    @property
    def num_own(self) -> int:
        """H + K."""
        return self.own.shape[1]


def columns_of(head: Head, candidates: Tensor, num_items: int, size: int, generator: torch.Generator) -> Columns:
    """The columns of some contexts, drawn apart from their candidates.

    Args:
        head: H items of each.
        candidates: (B, K); -1 for one that is of another part of the catalogue, whose column stands for nothing.
        num_items: N.
        size: S of the tail; N if that is less.
        generator: the source of the tail.
    """
    tail = distinct(num_items, min(size, num_items), generator)
    is_here = candidates >= 0
    own = torch.cat([head.items, candidates.where(is_here, head.items[:, :1])], dim=1)
    is_there = torch.cat([head.is_there & ~is_among(head.items, candidates), is_here], dim=1)
    of_own = torch.zeros(own.shape).masked_fill_(~is_there, -torch.inf)
    of_tail = without(torch.zeros(len(own), len(tail)), tail, own)
    num_left = of_tail.isfinite().sum(dim=1, keepdim=True).clamp_(min=1)
    stands_for = (num_items - is_there.sum(dim=1, keepdim=True)) / num_left
    return Columns(own, tail, torch.cat([of_own, of_tail + stands_for.clamp(min=1).log()], dim=1))
