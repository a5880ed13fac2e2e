"""Races that end sharply: the stopping times of `esr_trainer.inclusion` and their gradient, in float64.

Where the items that are in are sure to be and the others sure not to be, the sum that tells a stopping time is flat,
and what is small must not be a difference of what is large.

Axes: B batch, M experts, N items.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

FINE = 1e-4
"""Newton step of log tau that may be the last: the error after it is about its square."""

MAX_BISECTIONS = 200
"""Steps of the second iteration: enough to halve any bracket of float32 logits to nothing."""

STEEP = 1e-5
"""Least d(arrivals) / d(log tau) at which plain sums still tell log tau to about 1e-7."""


class Arrivals(NamedTuple):
    """What a race must bring."""

    taken: int
    """Expected arrivals before this race."""
    size: int
    """Expected arrivals in this race."""
    log_weight: Tensor | None = None
    """log of how many items a column stands for, (B, N) float64; None where each is one item."""

    def of(self, rows: Tensor) -> "Arrivals":
        """The same for some contexts."""
        return self if self.log_weight is None else self._replace(log_weight=self.log_weight[rows])

    def weighed(self, logarithms: Tensor) -> Tensor:
        """log of w times what has these logarithms: (B, N) -> (B, N)."""
        return logarithms if self.log_weight is None else logarithms + self.log_weight


def log_arrival_probability(log_exposure: Tensor) -> Tensor:
    """log(1 - e^(-z)) from log z, for any z: its derivative by log z is z / (e^z - 1), from 1 down to 0."""
    probability: Tensor = _LogArrivalProbability.apply(log_exposure)  # type: ignore[no-untyped-call]
    return probability


class _LogArrivalProbability(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_exposure: Tensor) -> Tensor:
        exposure = log_exposure.exp()
        ctx.save_for_backward(exposure)
        # log(-expm1(-z)) loses z below the smallest float, log1p(-e^-z) is exact where little is left
        common = exposure.clamp(1e-6, 1.0)
        small = torch.where(exposure < 1e-6, log_exposure - exposure / 2, (-torch.expm1(-common)).log())
        return torch.where(exposure < 1, small, torch.log1p(-torch.exp(-exposure.clamp(min=1.0))))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (exposure,) = ctx.saved_tensors
        slope = torch.where(exposure < 1e-12, 1.0, exposure / torch.expm1(exposure.clamp(1e-12, 700.0)))
        return gradients[0] * torch.where(exposure > 700, 0.0, slope)


def polish(rates: Tensor, exposure: Tensor | None, times: Tensor, wanted: Arrivals) -> Tensor:
    """What `solve` leaves, in float64: Newton from a first guess, kept inside a bracket; finished by `solve_flat`.

    The sum is flat where the items that are in are sure to be and the others sure not to be. Contexts that have
    converged are set aside.

    Args:
        rates: (B, N) float64.
        exposure: (B, N) float64 or None.
        times: first guess of log tau, (B,); may be nan.
        wanted: what the race must bring.
    """
    taken, size, log_weight = wanted
    weight = None if log_weight is None else log_weight.exp()
    left_before = (rates.new_full(times.shape, rates.shape[1]) if weight is None else weight.sum(dim=1)) - taken
    # since 1 - e^-z <= z, a lower bound
    low = math.log(size) - wanted.weighed(rates if exposure is None else rates - exposure).logsumexp(dim=1) - 1e-3
    times = torch.where(times > low, times, low)
    solution = times.clone()
    flat = torch.zeros(len(rates), dtype=torch.bool, device=rates.device)
    rows = torch.arange(len(rates), device=rates.device)
    high = math.log(math.log(rates.shape[1]) + 40) - rates.amin(dim=1)  # everything has arrived
    f, before = rates, exposure
    for _ in range(MAX_BISECTIONS):
        arrivals = (f + times[:, None]).exp_()
        left = (arrivals.neg() if before is None else (arrivals + before).neg_()).exp_()
        left = left if weight is None else left.mul_(weight)
        arrived = left_before - left.sum(dim=1)
        slope = torch.linalg.vecdot(arrivals, left)
        excess = (arrived.clamp(min=1e-300) / size).log()  # rounding can leave a sum of almost nothing below 0
        low, high = torch.where(excess <= 0, times, low), torch.where(excess > 0, times, high)
        newton = times - excess * arrived / slope
        is_flat = (slope < STEEP * size) & (excess.abs() < 0.5)
        # Newton is right near the solution; far from it, where the sum may be all rounding, the bracket is halved
        inside = (newton >= low) & (newton <= high) & (excess.abs() < 0.5)
        # a last small step squares the error; a bracket of no width holds the solution
        stop = is_flat | (inside & ((newton - times).abs() < FINE)) | (high - low < 1e-12 * (1 + times.abs()))
        times = torch.where(inside, newton, torch.where(stop, times, (low + high) / 2))
        solution[rows] = times
        flat[rows] = is_flat
        if stop.all():
            break
        keep = ~stop
        rows, f, times, low, high, left_before = (value[keep] for value in (rows, f, times, low, high, left_before))
        before, weight = (None if value is None else value[keep] for value in (before, weight))
    if flat.any():
        before = None if exposure is None else exposure[flat]
        solution[flat] = solve_flat(rates[flat], before, wanted.of(flat))
    return solution


def solve_flat(rates: Tensor, exposure: Tensor | None, wanted: Arrivals) -> Tensor:
    """log tau where plain sums cannot tell it: balance those that are in but left against those that are out but came.

    With T the `size` items that most probably arrive, sum_a p(a) = |T| says sum_T (1 - p) = sum_{not T} p: small terms
    on both sides, compared in log space, so nothing cancels. That holds for the arrivals of this race,
    p = s (1 - e^-z) with s = e^-exposure (DESIGN §4), and for those of all races so far, p = 1 - e^-(exposure + z). The
    first is exact where a race before it ended sharply, the second where it left items in between: whichever balances
    less is taken.

    Args:
        rates: (B, N) float64.
        exposure: Z before this race, (B, N), or None.
        wanted: what the race must bring.

    Returns:
        (B,).
    """

    def so_far(log_z: Tensor) -> tuple[Tensor, Tensor]:
        log_exposure = log_z if exposure is None else torch.logaddexp(exposure.log(), log_z)
        return log_arrival_probability(log_exposure), -log_exposure.exp()

    if exposure is None:
        return balance(so_far, rates, wanted)[0]

    def in_this_race(log_z: Tensor) -> tuple[Tensor, Tensor]:
        came = log_arrival_probability(log_z) - exposure
        return came, torch.logaddexp(log_arrival_probability(exposure.log()), -exposure - log_z.exp())

    first, first_left = balance(so_far, rates, wanted._replace(taken=0, size=wanted.taken + wanted.size))
    second, second_left = balance(in_this_race, rates, wanted)
    return torch.where(first_left < second_left, first, second)


def balance(
    came_and_left: Callable[[Tensor], tuple[Tensor, Tensor]], rates: Tensor, wanted: Arrivals
) -> tuple[Tensor, Tensor]:
    """Bisect log tau until the items behind the first `size` came as much as those in front are left.

    Args:
        came_and_left: log z (B, N) -> log p and log(1 - p), (B, N).
        rates: (B, N).
        wanted: |T| is its size.

    Returns:
        log tau and the logarithm of what balances, (B,) each.
    """
    # 1 - e^-z <= z below; above, even z of the last item is so large that its e^-z underflows
    low, high = -wanted.weighed(rates).logsumexp(dim=1) - 1e-3, 100 - rates.amin(dim=1)
    for _ in range(64):
        times = (low + high) / 2
        log_came, log_left = came_and_left(rates + times[:, None])
        in_front = first_of(log_came, wanted)
        left = torch.where(in_front, wanted.weighed(log_left), -torch.inf).logsumexp(dim=1)
        came = torch.where(in_front, -torch.inf, wanted.weighed(log_came)).logsumexp(dim=1)
        too_early = left > came
        low, high = torch.where(too_early, times, low), torch.where(too_early, high, times)
    return (low + high) / 2, left


def first_of(log_came: Tensor, wanted: Arrivals) -> Tensor:
    """The columns that most probably arrive and stand for `size` items together: (B, N) -> (B, N)."""
    if wanted.log_weight is None:
        first = log_came.topk(wanted.size, dim=1).indices
        return torch.zeros_like(log_came, dtype=torch.bool).scatter_(1, first, True)
    order = log_came.argsort(dim=1, descending=True)
    is_first = wanted.log_weight.exp().gather(1, order).cumsum(dim=1) < wanted.size + 0.5
    return torch.zeros_like(is_first).scatter_(1, order, is_first)


def hard_gradient(logits: Tensor, times: Tensor, gradient: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """What `gradient` by the stopping times is by the logits, in float64, where a race may end sharply.

    Race m: sum_a s_m (1 - e^-z_m) = K_m with s_m = exp(-Z_(m-1)). With came = s_m (1 - e^-z_m) and left = exp(-Z_m),
    its differential sum_a left z_m (df^m + dt_m) - sum_{m' < m} sum_a came z_m' (df^m' + dt_m') is 0; adding the races
    before, so is the same with `left` instead of `-came`. Whichever is smaller loses nothing to cancellation.

    Args:
        logits: (B, M, N).
        times: log tau, (B, min(M, K)).
        gradient: (B, min(M, K)).
        log_weight: log of how many items a column stands for, (B, N), or None: both `left` and `came` are that many.

    Returns:
        (B, M, N), float64.
    """
    num_races = times.shape[1]
    exposed = logits[:, :num_races] + times[:, :, None]
    if logits.shape[1] == 1:  # dt = - q df with q = s / sum s, s = z e^-z: a softmax, whatever the logits' size
        spread = exposed - exposed.exp()
        spread = spread if log_weight is None else spread + log_weight[:, None]
        return spread.softmax(dim=2).mul_(-gradient[:, :, None])
    arrivals = exposed.exp_()
    left = arrivals.cumsum(dim=1).neg_().exp_()
    came = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], dim=1).mul_(torch.expm1(-arrivals))  # negative
    if log_weight is not None:
        weights = log_weight.exp()[:, None]
        left, came = left * weights, came * weights
    by_left, by_came = (torch.bmm(terms, arrivals.transpose(1, 2)).tril(-1) for terms in (left, came))
    is_smaller = by_left.sum(dim=2, keepdim=True) < -by_came.sum(dim=2, keepdim=True)
    system = torch.where(is_smaller, by_left, by_came) + torch.linalg.vecdot(left, arrivals).diag_embed()
    weight = torch.linalg.solve_triangular(system.mT, gradient[:, :, None], upper=True)
    earlier = torch.where(is_smaller, left, came).mul_(weight)
    left *= weight
    for expert in reversed(range(num_races - 1)):  # expert m answers for itself and for those behind it
        left[:, expert] += earlier[:, expert + 1]
        earlier[:, expert] += earlier[:, expert + 1]
    result = torch.zeros_like(logits, dtype=torch.float64)
    result[:, :num_races] = arrivals.mul_(left).neg_()
    return result
