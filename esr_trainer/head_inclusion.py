"""Inclusion probabilities draw by draw: the few heaviest items exactly, all others as dust.

Successive sampling draws a with chance w(a) / R, w = e^f, R the weight that is left. R is random, and only a few items
make it so: those that hold a good part of the weight. So, expert by expert, the HEADS heaviest items that are likely to
be left are followed exactly, by the chance p(S) of every set S of them that is gone, and the others, the dust, only by
their chance u(a) to be left. With

    R(S) = sum of w over heads not in S + D,     D = sum over dust of u w,     A = sum_S p(S) / R(S)

one draw is

    head j:  d(j) = w(j) sum_{S without j} p(S) / R(S)
    dust a:  d(a) = c A u(a) w(a) / (1 + A (1 - u(a)) w(a)),        c from  sum over dust of d = D A
    then     p'(S) = p(S) D / R(S) + sum_{j in S} w(j) p(S - j) / R(S - j),      u' = u - d

where the fraction says that R holds all of w(a), and not u(a) w(a), if a is left. Every draw sums to 1, and pi, the sum
of d over all draws, to K. Exact: the first draw, a softmax; all draws of all experts when N <= HEADS; any race among
heads far above the rest. The next expert chooses its own heads: those that both have keep their joint law, one that
leaves is summed out, one that enters is taken as independent of the others.

None of the sources has this form. Like `esr_trainer.inclusion` it works in the logits' own precision wherever that
will do; only the heads are always float64.

Axes: B batch, M experts that own a position, N items, J heads, S sets of heads that are gone (bit j: head j is).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from esr_trainer.quotas import LEAST_HEADS, ROUNDING, WIDEST, quotas

HEADS = LEAST_HEADS
"""Items followed exactly while learning."""

ONE_BY_ONE = 4
"""Largest quota that is drawn one by one, below HEADS: the last draw must find heads that are left."""

WIDE = 50.0
"""Logits of one expert that lie further apart than this need float64: products of two ratios must fit."""


class Race(NamedTuple):
    """What one expert's draws did."""

    lead: Tensor
    """Logits less the expert's largest, (B, N)."""
    gain: Tensor
    """Sum over the expert's draws of d / w, w = e^lead, (B, N): it is right even where w underflows."""


class State(NamedTuple):
    """What is left between two draws."""

    left: Tensor
    """u, (B, N)."""
    taken: Tensor
    """1 - u before this expert, (B, N): kept apart, since the smaller of the two is lost in the larger."""
    heads: Tensor
    """Items, (B, J)."""
    chances: Tensor
    """p, (B, S), float64."""


def has_closed_form(num_items: int, num_candidates: int, num_experts: int) -> bool:
    """Whether quotas are small enough to draw one by one, and the dust cannot run out."""
    is_small = quotas(num_candidates, num_experts)[0] <= ONE_BY_ONE
    return is_small and (num_candidates < num_items <= HEADS or 2 * num_candidates <= num_items)


def races(logits: Tensor, num_candidates: int, num_heads: int = HEADS) -> tuple[list[Race], Tensor]:
    """Draw after draw, expert after expert: pi(a) = sum_m e^lead_m(a) gain_m(a).

    Args:
        logits: (B, M, N), finite, with N and K that have the closed form.
        num_candidates: K.
        num_heads: J, of at most N.

    Returns:
        One race per expert that owns a position, and whether the closed form holds for a context, (B,): not so where
        its logits are WIDEST apart, or too few items were left.
    """
    width = (logits.detach().amax(dim=2) - logits.detach().amin(dim=2)).amax(dim=1)
    if width.max() > WIDE:
        logits = logits.double()
    batch, num_experts, num_items = logits.shape
    num_heads = min(num_heads, num_items)
    chances = logits.new_zeros((batch, 1 << num_heads), dtype=torch.float64)
    chances[:, 0] = 1.0
    heads = torch.arange(num_heads, device=logits.device).expand(batch, -1)  # all left: as good as any
    none = torch.zeros_like(logits[:, 0])
    state = State(none + 1, none, heads, chances)
    done: list[Race] = []
    for rates, size in zip(logits.unbind(1), quotas(num_candidates, num_experts), strict=True):
        if not size:
            break
        lead = rates - rates.detach().amax(dim=1, keepdim=True)
        weights = lead.exp()
        gain, state = draws(weights, choose_heads(weights, state) if done else first_heads(weights, state), size)
        gain = gain.clamp(min=0.0)  # below 0 where a draw took more than was left: the sum tells
        state = state._replace(left=state.left.clamp(min=0.0), taken=torch.addcmul(state.taken, weights, gain))
        done.append(Race(lead, gain))
    pi = state.taken.detach().double()
    has_sum = (pi.sum(dim=1) / num_candidates - 1).abs() < ROUNDING
    return done, (width < WIDEST) & has_sum & (pi.amax(dim=1) < 1 + ROUNDING)


def log_inclusion(done: list[Race], items: Tensor) -> Tensor:
    """log pi of some items: (B, L) -> (B, L), float64, none above 0."""
    parts = []
    for lead, gain in done:  # an item that is surely gone gains nothing more
        log_gain = gain.gather(1, items).double().clamp(min=1e-300).log()
        parts.append(lead.gather(1, items).double() + log_gain)
    result = parts[0] if len(parts) == 1 else torch.stack(parts, dim=1).logsumexp(dim=1)
    return result.clamp(max=0.0)


def draws(weights: Tensor, state: State, size: int) -> tuple[Tensor, State]:
    """One expert's draws.

    Args:
        weights: w of this expert, (B, N).
        state: what the expert finds.
        size: number of draws.

    Returns:
        The sum over the draws of d / w, (B, N), and what is left.
    """
    left, taken, heads, chances = state
    sets, slots = (torch.arange(length, device=heads.device) for length in (chances.shape[1], heads.shape[1]))
    here = 1 - (sets[:, None] >> slots & 1).double()  # (S, J)
    heavy = weights.gather(1, heads).double()
    heavy_left = heavy @ here.T
    light = weights.scatter(1, heads, 0.0)
    gain, head_gain = torch.zeros_like(weights), torch.zeros_like(heavy)
    for _ in range(size):
        rest = torch.linalg.vecdot(light, left).double()[:, None]
        total = heavy_left + rest
        pace = chances / torch.where(total > 0, total, 1.0)  # N <= HEADS: nothing is left in the set of all, p = 0
        mean = pace.sum(dim=1, keepdim=True)
        draw, left = _DustDraw.apply(light, left, mean, rest * mean)  # type: ignore[no-untyped-call]
        gain, head_gain = gain + draw, head_gain + pace @ here
        chances = pace * rest + _HeadDraw.apply(pace, heavy)  # type: ignore[no-untyped-call]
    gain = gain.scatter(1, heads, head_gain.to(gain.dtype))
    return gain, State(left.scatter(1, heads, (chances @ here).to(left.dtype)), taken, heads, chances)


def first_heads(weights: Tensor, state: State) -> State:
    """Before the first draw nothing is gone, whatever the heads: w (B, N)."""
    return state._replace(heads=weights.detach().topk(state.heads.shape[1], dim=1).indices)


def choose_heads(weights: Tensor, state: State) -> State:
    """The items with the largest expected weight, and the chances of the sets of them that are gone.

    Args:
        weights: w of the next expert, (B, N).
        state: what it finds.

    Returns:
        The state with new heads, where those that stay keep their slot.
    """
    left, taken, heads, chances = state
    best = (weights.detach() * left.detach()).topk(heads.shape[1], dim=1).indices
    same = heads[:, :, None] == best[:, None, :]
    stays, enters = same.any(dim=2), ~same.any(dim=1)
    to = (~stays[:, :, None] & enters[:, None, :]) & ((~stays).cumsum(1)[:, :, None] == enters.cumsum(1)[:, None, :])
    heads = torch.where(stays, heads, (to * best[:, None, :]).sum(dim=2))
    odds = torch.stack([left.gather(1, heads), taken.gather(1, heads)], dim=2).double()
    for slot in range(heads.shape[1]):
        if not stays[:, slot].all():
            old = by_bit(chances, slot)
            new = old.sum(dim=2, keepdim=True) * odds[:, slot, None, :, None]
            chances = torch.where(stays[:, slot, None, None, None], old, new).flatten(1)
    return state._replace(heads=heads, chances=chances)


def by_bit(chances: Tensor, slot: int) -> Tensor:
    """(B, S) -> (B, S / 2^(slot + 1), 2, 2^slot), a view: axis 2 says whether head `slot` is gone."""
    return chances.reshape(len(chances), -1, 2, 1 << slot)


class _DustDraw(torch.autograd.Function):
    """d / w = c A u / (1 + A (1 - u) w) and u' = u - d; A `mean`, (B, 1), and sum of d `wanted`, (B, 1), float64."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, left: Tensor, mean: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        slower = torch.addcmul(weights, weights, left, value=-1).mul_(mean.to(weights.dtype)).add_(1)
        pace = slower.reciprocal_()
        gain = left * pace
        total = torch.linalg.vecdot(weights, gain).double()[:, None]
        scale = torch.where(total > 0, wanted, 0.0) / torch.where(total > 0, total, 1.0)
        gain *= scale.to(weights.dtype)
        ctx.save_for_backward(weights, left, mean, wanted, scale, pace, gain)
        return gain, torch.addcmul(left, weights, gain, value=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights, left, mean, wanted, scale, pace, gain = ctx.saved_tensors
        by_gain, by_left = gradients
        share = torch.addcmul(by_gain, weights, by_left, value=-1)  # of d / w, before c
        alpha = torch.linalg.vecdot(share, gain).double()[:, None]
        kappa = alpha / torch.where(wanted > 0, wanted, 1.0)
        past = by_left + kappa.to(by_left.dtype)
        share = torch.addcmul(by_gain, weights, past, value=-1).mul_(pace)
        by_slower = (share * gain).neg_()  # of the denominator 1 + A (1 - u) w
        by_slower_a = by_slower * mean.to(weights.dtype)
        gone = 1 - left
        by_mean = torch.linalg.vecdot(by_slower.mul_(weights), gone).double()[:, None]
        by_weights = by_slower_a.mul(gone).addcmul_(gain, past, value=-1)
        by_u = share.mul_(scale.to(weights.dtype)).add_(by_left).addcmul_(by_slower_a, weights, value=-1)
        return by_weights, by_u, by_mean, kappa


class _HeadDraw(torch.autograd.Function):
    """sum_{j in S} w(j) q(S - j) of q, (B, S), and w, (B, J)."""

    @staticmethod
    def forward(ctx: Any, pace: Tensor, heavy: Tensor) -> Tensor:
        ctx.save_for_backward(pace, heavy)
        result = torch.zeros_like(pace)
        for slot, weight in enumerate(heavy.T):
            before, after = by_bit(pace, slot), by_bit(result, slot)
            after[:, :, 1].addcmul_(before[:, :, 0], weight[:, None, None])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        pace, heavy = ctx.saved_tensors
        by_pace, by_heavy = torch.zeros_like(pace), torch.empty_like(heavy)
        for slot, weight in enumerate(heavy.T):
            before, by_before, after = (by_bit(values, slot) for values in (pace, by_pace, gradients[0]))
            by_before[:, :, 0].addcmul_(after[:, :, 1], weight[:, None, None])
            by_heavy[:, slot] = (before[:, :, 0] * after[:, :, 1]).sum(dim=(1, 2))
        return by_pace, by_heavy
