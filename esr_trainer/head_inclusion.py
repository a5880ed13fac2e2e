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
will do; only the heads are always float64. Where the catalogue is shared out, each process has the dust that is there,
and all have the heads: the dust's sums are of all shards, and a head's logit comes from who has it.

Axes: B batch, M experts that own a position, N items, H of them here, J heads, S sets of heads that are gone (bit j:
head j is).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from esr_trainer.quotas import LEAST_HEADS, ROUNDING, WIDEST, quotas
from esr_trainer.shards import WHOLE, Logits, Shards, parts_of

HEADS = LEAST_HEADS
"""Items followed exactly while learning."""

ONE_BY_ONE = 4
"""Largest quota that is drawn one by one, below HEADS: the last draw must find heads that are left."""

WIDE = 50.0
"""Logits of one expert that lie further apart than this need float64: products of two ratios must fit."""


class Race(NamedTuple):
    """What one expert's draws did."""

    lead: Tensor
    """Logits less the expert's largest, (B, H)."""
    gain: Tensor
    """Sum over the expert's draws of d / w, w = e^lead, (B, H): it is right even where w underflows."""


class State(NamedTuple):
    """What is left between two draws."""

    left: Tensor
    """u, (B, H)."""
    taken: Tensor
    """1 - u before this expert, (B, H): kept apart, since the smaller of the two is lost in the larger."""
    heads: Tensor
    """Items, (B, J)."""
    chances: Tensor
    """p, (B, S), float64."""


def has_closed_form(num_items: int, num_candidates: int, num_experts: int) -> bool:
    """Whether quotas are small enough to draw one by one, and the dust cannot run out."""
    is_small = quotas(num_candidates, num_experts)[0] <= ONE_BY_ONE
    return is_small and (num_candidates < num_items <= HEADS or 2 * num_candidates <= num_items)


def races(logits: Logits, num_candidates: int, num_heads: int = HEADS) -> tuple[list[Race], Tensor]:
    """Draw after draw, expert after expert: pi(a) = sum_m e^lead_m(a) gain_m(a).

    Args:
        logits: (B, M, N), finite, with N and K that have the closed form.
        num_candidates: K.
        num_heads: J, of at most N.

    Returns:
        One race per expert that owns a position, and whether the closed form holds for a context, (B,): not so where
        its logits are WIDEST apart, or too few items were left.
    """
    batch, num_experts, num_items = logits.shape
    here, shards = parts_of(logits)
    largest = shards.max(here.detach().amax(dim=2))
    width = (largest + shards.max(-here.detach().amin(dim=2))).amax(dim=1)
    if width.max() > WIDE:
        here, largest = here.double(), largest.double()
    num_heads = min(num_heads, num_items)
    chances = here.new_zeros((batch, 1 << num_heads), dtype=torch.float64)
    chances[:, 0] = 1.0
    heads = torch.arange(num_heads, device=here.device).expand(batch, -1)  # all left: as good as any
    none = torch.zeros_like(here[:, 0])
    state = State(none + 1, none, heads, chances)
    done: list[Race] = []
    leads = here - largest[:, :, None]
    for lead, size in zip(leads.unbind(1), quotas(num_candidates, num_experts), strict=True):
        if not size:
            break
        weights = lead.exp()
        state = choose_heads(weights, state, shards) if done else first_heads(weights, state, shards)
        gain, state = draws(weights, state, size, shards)
        gain = gain.clamp(min=0.0)  # below 0 where a draw took more than was left: the sum tells
        state = state._replace(left=state.left.clamp(min=0.0), taken=torch.addcmul(state.taken, weights, gain))
        done.append(Race(lead, gain))
    pi = state.taken.detach().double()
    (total,) = shards.sum(pi.sum(dim=1))
    has_sum = (total / num_candidates - 1).abs() < ROUNDING
    return done, (width < WIDEST) & has_sum & (shards.max(pi.amax(dim=1)) < 1 + ROUNDING)


def log_inclusion(done: list[Race], items: Tensor, shards: Shards = WHOLE) -> Tensor:
    """log pi of some items: (B, L) -> (B, L), float64, none above 0."""
    parts = []
    for race in done:
        lead, gain = (shards.pick(values[:, None], items)[:, 0].double() for values in race)
        parts.append(lead + gain.clamp(min=1e-300).log())  # an item that is surely gone gains nothing more
    result = parts[0] if len(parts) == 1 else torch.stack(parts, dim=1).logsumexp(dim=1)
    return result.clamp(max=0.0)


def draws(weights: Tensor, state: State, size: int, shards: Shards) -> tuple[Tensor, State]:
    """One expert's draws.

    Args:
        weights: w of this expert, (B, H).
        state: what the expert finds.
        size: number of draws.
        shards: what speaks for the items that are elsewhere.

    Returns:
        The sum over the draws of d / w, (B, H), and what is left.
    """
    left, taken, heads, chances = state
    sets, slots = (torch.arange(length, device=heads.device) for length in (chances.shape[1], heads.shape[1]))
    here = 1 - (sets[:, None] >> slots & 1).double()  # (S, J)
    heavy = shards.pick(weights[:, None], heads)[:, 0].double()
    heavy_left = heavy @ here.T
    light = put(weights, heads, torch.zeros_like(heavy), shards)
    gain, head_gain = torch.zeros_like(weights), torch.zeros_like(heavy)
    for _ in range(size):
        rest = _Total.apply(torch.linalg.vecdot(light, left).double()[:, None], shards)  # type: ignore[no-untyped-call]
        total = heavy_left + rest
        pace = chances / torch.where(total > 0, total, 1.0)  # N <= HEADS: nothing is left in the set of all, p = 0
        mean = pace.sum(dim=1, keepdim=True)
        draw, left = _DustDraw.apply(light, left, mean, rest * mean, shards)  # type: ignore[no-untyped-call]
        gain, head_gain = gain + draw, head_gain + pace @ here
        chances = pace * rest + _HeadDraw.apply(pace, heavy)  # type: ignore[no-untyped-call]
    gain = put(gain, heads, head_gain, shards)
    return gain, State(put(left, heads, chances @ here, shards), taken, heads, chances)


def put(target: Tensor, items: Tensor, values: Tensor, shards: Shards) -> Tensor:
    """A copy with other values of some items: (B, H), (B, J), (B, J) of items anywhere -> (B, H)."""
    changed: Tensor = _Put.apply(target, items, values.to(target.dtype), shards)  # type: ignore[no-untyped-call]
    return changed


def first_heads(weights: Tensor, state: State, shards: Shards) -> State:
    """Before the first draw nothing is gone, whatever the heads: w (B, H)."""
    return state._replace(heads=shards.best(weights.detach(), state.heads.shape[1]))


def choose_heads(weights: Tensor, state: State, shards: Shards) -> State:
    """The items with the largest expected weight, and the chances of the sets of them that are gone.

    Args:
        weights: w of the next expert, (B, H).
        state: what it finds.
        shards: what speaks for the items that are elsewhere.

    Returns:
        The state with new heads, where those that stay keep their slot.
    """
    left, taken, heads, chances = state
    best = shards.best(weights.detach() * left.detach(), heads.shape[1])
    same = heads[:, :, None] == best[:, None, :]
    stays, enters = same.any(dim=2), ~same.any(dim=1)
    to = (~stays[:, :, None] & enters[:, None, :]) & ((~stays).cumsum(1)[:, :, None] == enters.cumsum(1)[:, None, :])
    heads = torch.where(stays, heads, (to * best[:, None, :]).sum(dim=2))
    odds = torch.cat([shards.pick(values[:, None], heads) for values in (left, taken)], dim=1).mT.double()
    for slot in range(heads.shape[1]):
        if not stays[:, slot].all():
            old = by_bit(chances, slot)
            new = old.sum(dim=2, keepdim=True) * odds[:, slot, None, :, None]
            chances = torch.where(stays[:, slot, None, None, None], old, new).flatten(1)
    return state._replace(heads=heads, chances=chances)


def by_bit(chances: Tensor, slot: int) -> Tensor:
    """(B, S) -> (B, S / 2^(slot + 1), 2, 2^slot), a view: axis 2 says whether head `slot` is gone."""
    return chances.reshape(len(chances), -1, 2, 1 << slot)


class _Total(torch.autograd.Function):
    """The sum over all shards, of which every process makes the same."""

    @staticmethod
    def forward(_ctx: Any, part: Tensor, shards: Shards) -> Tensor:
        (total,) = shards.sum(part)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Put(torch.autograd.Function):
    """Values that all have, put where their items are: their gradient is there."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, items: Tensor, values: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        ctx.save_for_backward(items)
        return shards.put(target[:, None], items, values[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        (items,) = ctx.saved_tensors
        everywhere, nothing = gradients[0][:, None], gradients[0].new_zeros((len(items), 1, items.shape[1]))
        of_values = ctx.shards.pick(everywhere, items)[:, 0] if ctx.needs_input_grad[2] else None
        return ctx.shards.put(everywhere, items, nothing)[:, 0], None, of_values, None


class _DustDraw(torch.autograd.Function):
    """d / w = c A u / (1 + A (1 - u) w) and u' = u - d; A `mean`, (B, 1), and sum of d `wanted`, (B, 1), float64."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, left: Tensor, mean: Tensor, wanted: Tensor, shards: Shards
    ) -> tuple[Tensor, Tensor]:
        slower = torch.addcmul(weights, weights, left, value=-1).mul_(mean.to(weights.dtype)).add_(1)
        pace = slower.reciprocal_()
        gain = left * pace
        (total,) = shards.sum(torch.linalg.vecdot(weights, gain).double()[:, None])
        scale = torch.where(total > 0, wanted, 0.0) / torch.where(total > 0, total, 1.0)
        gain *= scale.to(weights.dtype)
        ctx.shards = shards
        ctx.save_for_backward(weights, left, mean, wanted, scale, pace, gain)
        return gain, torch.addcmul(left, weights, gain, value=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        weights, left, mean, wanted, scale, pace, gain = ctx.saved_tensors
        by_gain, by_left = gradients
        share = torch.addcmul(by_gain, weights, by_left, value=-1)  # of d / w, before c
        (alpha,) = ctx.shards.sum(torch.linalg.vecdot(share, gain).double()[:, None])
        kappa = alpha / torch.where(wanted > 0, wanted, 1.0)
        past = by_left + kappa.to(by_left.dtype)
        share = torch.addcmul(by_gain, weights, past, value=-1).mul_(pace)
        by_slower = (share * gain).neg_()  # of the denominator 1 + A (1 - u) w
        by_slower_a = by_slower * mean.to(weights.dtype)
        gone = 1 - left
        (by_mean,) = ctx.shards.sum(torch.linalg.vecdot(by_slower.mul_(weights), gone).double()[:, None])
        by_weights = by_slower_a.mul(gone).addcmul_(gain, past, value=-1)
        by_u = share.mul_(scale.to(weights.dtype)).add_(by_left).addcmul_(by_slower_a, weights, value=-1)
        return by_weights, by_u, by_mean, kappa, None


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
