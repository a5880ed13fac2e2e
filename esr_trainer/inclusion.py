"""Inclusion probabilities in closed form: successive sampling stopped at a fixed time.

Drawing without replacement with weights e^f is an exponential race: item a arrives at rate e^f(a), the first K to
arrive are the candidates. Stopped at a fixed time and not at the K-th arrival, arrivals are independent (Rosén 1972).
With several experts the races follow one another: expert m runs for a time tau_m among the items that are still there,
so item a is left after expert m with probability exp(-Z_m(a)), Z_m = z_1 + ... + z_m, z_m = e^(f^m + log tau_m), and
tau_m solves

    sum_a (1 - exp(-Z_m(a))) = K_1 + ... + K_m,        pi(a) = 1 - exp(-Z_M(a)),        sum_a pi(a) = K.

None of the sources has this form (DESIGN §4, ca-poisson). It is solved in the logits' own precision where that tells
it, else in float64 (`esr_trainer.sharp_races`); nothing here needs an epsilon. One expert's logits may have any size;
with several they are held to [-80, 80], where the products of their rates still fit.

Axes: B batch, M experts, N items, J any items.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from esr_trainer.quotas import quotas
from esr_trainer.shards import WHOLE, Logits, Shards, SummedLogits, parts_of
from esr_trainer.sharp_races import Arrivals, hard_gradient, log_arrival_probability, polish

CROWDED = 0.9
"""Largest share of the equal items that the first guess lets arrive."""

MAX_STEPS = 6
"""Steps of the first iteration; a context that needs more is unusual and left to the second."""

LAST = 3e-3
"""Halley step of log tau that may be the last: the error after it is about its cube."""

EVEN = 0.05
"""Least d(arrivals) / d(log tau), per arrival, at which sums in the logits' own precision tell log tau to 1e-5."""

NEVER = 1e30
"""log tau of a race that is never stopped."""


def log_inclusion_probabilities(logits: Tensor, num_candidates: int, log_weight: Tensor | None = None) -> Tensor:
    """log pi(a) of every item.

    Args:
        logits: (B, M, N), finite.
        num_candidates: K, at most N.
        log_weight: log of how many items a column stands for, (B, N), -inf for none; None where each is one item.

    Returns:
        (B, N), float64, none above 0; exp, times the weight, sums to K in every row.
    """
    log_times = log_stopping_times(logits, num_candidates, log_weight)
    return log_arrival_probability((logits[:, : log_times.shape[1]].double() + log_times[:, :, None]).logsumexp(dim=1))


def log_stopping_times(logits: Logits, num_candidates: int, log_weight: Tensor | None = None) -> Tensor:
    """log tau_m of every expert that owns a position, with the exact gradient of the implicit function.

    With weights the sums over items are w(a)-fold: tau_m solves sum_a w(a) (1 - exp(-Z_m(a))) = K_1 + ... + K_m.

    Args:
        logits: (B, M, N), finite.
        num_candidates: K, at most N; less than the sum of the weights.
        log_weight: log of how many items a column stands for, (B, N), -inf for none; None where each is one item.

    Returns:
        (B, min(M, K)), float64; where everything is in, K = N, times at which every item has long arrived.
    """
    if isinstance(logits, SummedLogits):
        assert logits.log_times.shape[1], "they were asked for"
        return logits.log_times
    here, shards = parts_of(logits)
    if num_candidates == logits.shape[2] and log_weight is None:
        num_races = min(logits.shape[1], num_candidates)
        return here.new_full((len(here), num_races), NEVER, dtype=torch.float64)
    times: Tensor = _LogStoppingTimes.apply(here, num_candidates, log_weight, shards)  # type: ignore[no-untyped-call]
    return times


class _LogStoppingTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, num_candidates: int, log_weight: Tensor | None, shards: Shards) -> Tensor:
        sizes = [quota for quota in quotas(num_candidates, logits.shape[1]) if quota]
        times = logits.new_empty((len(logits), len(sizes)), dtype=torch.float64)
        arrivals = logits.new_empty((len(sizes), len(logits), logits.shape[2]))  # z_m
        left = torch.empty_like(arrivals)  # exp(-Z_m)
        weight = None if log_weight is None else log_weight.exp().to(logits.dtype)
        is_easy = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        for expert, taken in enumerate(itertools.accumulate(sizes)):
            rates, before = logits[:, expert], left[expert - 1] if expert else weight
            times[:, expert], is_solved = solve(rates, before, sizes[expert], arrivals[expert], shards)
            if not is_solved.all():
                hard, size = ~is_solved, sizes[expert]
                every = shards.whole(logits[hard, : expert + 1].double())
                exposure = (every[:, :expert] + times[hard, :expert, None]).exp_().sum(dim=1) if expert else None
                wanted = Arrivals(taken - size, size, weights_of(log_weight, hard, shards))
                solution = polish(every[:, expert], exposure, times[hard, expert], wanted)
                times[hard, expert] = solution
                arrivals[expert, hard] = (rates[hard] + solution[:, None].to(rates.dtype)).exp_()
                is_easy &= is_solved
            torch.neg(arrivals[expert], out=left[expert]).exp_()
            if before is not None:
                left[expert] *= before
        ctx.shards = shards
        ctx.save_for_backward(logits, times, arrivals, left, is_easy, log_weight)
        return times

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, times, arrivals, left, is_easy, log_weight = ctx.saved_tensors
        (gradient,) = gradients
        num_races = times.shape[1]
        # Race m: sum_a left_m = N - K_1 - ... - K_m, so sum_{m' <= m} sum_a left_m z_m' (df^m' + dt_m') = 0: one
        # triangular system per context, transposed here.
        (system,) = ctx.shards.sum(torch.bmm(left.transpose(0, 1), arrivals.permute(1, 2, 0)))
        weight = torch.linalg.solve_triangular(system.double().mT, -gradient[:, :, None], upper=True).to(logits.dtype)
        per_arrival = left * weight.transpose(0, 1)
        for expert in reversed(range(num_races - 1)):  # expert m answers for itself and for those behind it
            per_arrival[expert] += per_arrival[expert + 1]
        result = per_arrival.mul_(arrivals).transpose(0, 1)
        if num_races < logits.shape[1]:
            result = torch.cat([result, torch.zeros_like(logits[:, num_races:])], dim=1)
        if not is_easy.all():
            hard = ~is_easy
            weights = weights_of(log_weight, hard, ctx.shards)
            every = hard_gradient(ctx.shards.whole(logits[hard]), times[hard], gradient[hard], weights)
            result[hard] = ctx.shards.own(every).to(result.dtype)
        return result, None, None, None


def weights_of(log_weight: Tensor | None, contexts: Tensor, shards: Shards) -> Tensor | None:
    """log of how many items everybody's columns stand for in some of the contexts, float64; None for one item each."""
    return None if log_weight is None else shards.whole(log_weight[contexts].double())


def solve(rates: Tensor, left: Tensor | None, size: int, out: Tensor, shards: Shards = WHOLE) -> tuple[Tensor, Tensor]:
    """log tau of one expert's race: sum_a left(a) (1 - e^-z(a)) = size, z = e^(rates + log tau).

    Halley's iteration on the logarithm of both sides, in the logits' own precision: every term is positive, so the sums
    keep it whatever N is. The first guess is exact for n equal items, n = (sum w)^2 / sum w^2 of the rates w.

    Args:
        rates: f, (B, N).
        left: w e^-Z of the experts before, (B, N), or None before the first race of single items.
        size: expected arrivals in this race.
        out: where z is written, (B, N).
        shards: what speaks for the items that are elsewhere.

    Returns:
        (B,) float64, and whether it is the solution, (B,): not so where the sum is flat, or a weight underflows.
    """
    largest = shards.max(rates.amax(dim=1, keepdim=True))
    weights = (rates - largest).exp_()
    mass = weights if left is None else weights * left
    total, squares = shards.sum(mass.sum(dim=1), torch.linalg.vecdot(weights, mass))

    def sums(log_times: Tensor) -> tuple[Tensor, ...]:
        exposed = weights * -log_times.exp()[:, None]  # -z
        came = torch.expm1(exposed)
        if left is not None:
            came *= left
        arrived = -came.sum(dim=1)
        flow = came.add_(1 if left is None else left).mul_(exposed)
        return shards.sum(arrived, -flow.sum(dim=1), torch.linalg.vecdot(exposed, flow))

    log_times, is_solved = halley(sums, first_guess(total, squares, size), size)
    torch.mul(weights, log_times.exp()[:, None], out=out)
    return log_times.double() - largest[:, 0], is_solved


def first_guess(total: Tensor, squares: Tensor, size: int) -> Tensor:
    """log tau, exact for n equal items, n = (sum w)^2 / sum w^2: (B,), (B,) -> (B,)."""
    crowding = (squares * (size / total.square())).clamp_(max=CROWDED)
    return (-torch.log1p(-crowding) / crowding * (size / total)).log()


def halley(sums: Callable[[Tensor], tuple[Tensor, ...]], log_times: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Halley's iteration on the logarithm of both sides of sum_a left(a) (1 - e^-z(a)) = size.

    Args:
        sums: log tau -> the left side, its derivative sum_a left z e^-z, and sum_a left z^2 e^-z, (B,) each.
        log_times: first guess, (B,).
        size: expected arrivals.

    Returns:
        log tau and whether it is the solution, (B,) each.
    """
    for _ in range(MAX_STEPS):
        arrived, slope, curve = sums(log_times)
        excess, rise = (arrived / size).log(), slope / arrived
        bend = (slope - curve) / arrived - rise.square()
        step = -2 * excess * rise / (2 * rise.square() - excess * bend)
        log_times = log_times + step.clamp(-3, 3)
        is_even = slope > EVEN * size
        is_solved = (step.abs() < LAST) & is_even
        if (is_solved | ~is_even).all():
            break
    return log_times, is_solved
