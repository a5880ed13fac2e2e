"""Inclusion probabilities in closed form: successive sampling stopped at a fixed time.

Drawing without replacement with weights e^f is an exponential race: item a arrives at rate e^f(a), the first K to
arrive are the candidates. Stopped at a fixed time and not at the K-th arrival, arrivals are independent (Rosén 1972).
With several experts the races follow one another: expert m runs for a time tau_m among the items that are still there,
so item a is left after expert m with probability exp(-Z_m(a)), Z_m = z_1 + ... + z_m, z_m = e^(f^m + log tau_m), and
tau_m solves

    sum_a (1 - exp(-Z_m(a))) = K_1 + ... + K_m,        pi(a) = 1 - exp(-Z_M(a)),        sum_a pi(a) = K.

None of the sources has this form (DESIGN §4, ca-poisson). It is solved in float64; nothing here needs an epsilon. One
expert's logits may have any size; with several they are held to [-80, 80], where the products of their rates still fit.

Axes: B batch, M experts, N items, J any items.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from esr_trainer.policy import quotas

CROWDED = 0.9
"""Largest share of the equal items that the first guess lets arrive."""

MAX_STEPS = 6
"""Steps of the first iteration; a context that needs more is unusual and left to the second."""

LAST = 3e-3
"""Halley step of log tau that may be the last: the error after it is about its cube."""

EVEN = 0.05
"""Least d(arrivals) / d(log tau), per arrival, at which sums in the logits' own precision tell log tau to 1e-5."""

FINE = 1e-4
"""Newton step of log tau that may be the last: the error after it is about its square."""

NEVER = 1e30
"""log tau of a race that is never stopped."""

MAX_BISECTIONS = 200
"""Steps of the second iteration: enough to halve any bracket of float32 logits to nothing."""

STEEP = 1e-5
"""Least d(arrivals) / d(log tau) at which plain sums still tell log tau to about 1e-7."""


def log_inclusion_probabilities(logits: Tensor, num_candidates: int) -> Tensor:
    """log pi(a) of every item.

    Args:
        logits: (B, M, N), finite.
        num_candidates: K, at most N.

    Returns:
        (B, N), float64, none above 0; exp sums to K in every row.
    """
    log_times = log_stopping_times(logits, num_candidates)
    return log_arrival_probability((logits[:, : log_times.shape[1]].double() + log_times[:, :, None]).logsumexp(dim=1))


def log_stopping_times(logits: Tensor, num_candidates: int) -> Tensor:
    """log tau_m of every expert that owns a position, with the exact gradient of the implicit function.

    Args:
        logits: (B, M, N), finite.
        num_candidates: K, at most N.

    Returns:
        (B, min(M, K)), float64; where everything is in, K = N, times at which every item has long arrived.
    """
    if num_candidates == logits.shape[2]:
        num_races = min(logits.shape[1], num_candidates)
        return logits.new_full((len(logits), num_races), NEVER, dtype=torch.float64)
    times: Tensor = _LogStoppingTimes.apply(logits, num_candidates)  # type: ignore[no-untyped-call]
    return times


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


class _LogStoppingTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, num_candidates: int) -> Tensor:
        sizes = [quota for quota in quotas(num_candidates, logits.shape[1]) if quota]
        times = logits.new_empty((len(logits), len(sizes)), dtype=torch.float64)
        arrivals = logits.new_empty((len(sizes), len(logits), logits.shape[2]))  # z_m
        left = torch.empty_like(arrivals)  # exp(-Z_m)
        is_easy = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        for expert, taken in enumerate(itertools.accumulate(sizes)):
            rates, before = logits[:, expert], left[expert - 1] if expert else None
            times[:, expert], is_solved = solve(rates, before, sizes[expert], out=arrivals[expert])
            if not is_solved.all():
                hard, size = ~is_solved, sizes[expert]
                passed = (logits[hard, :expert].double() + times[hard, :expert, None]).exp_().sum(dim=1)
                exposure = passed if expert else None
                solution = polish(rates[hard].double(), exposure, times[hard, expert], taken - size, size)
                times[hard, expert] = solution
                arrivals[expert, hard] = (rates[hard] + solution[:, None].to(rates.dtype)).exp_()
                is_easy &= is_solved
            torch.neg(arrivals[expert], out=left[expert]).exp_()
            if before is not None:
                left[expert] *= before
        ctx.save_for_backward(logits, times, arrivals, left, is_easy)
        return times

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, times, arrivals, left, is_easy = ctx.saved_tensors
        (gradient,) = gradients
        num_races = times.shape[1]
        # Race m: sum_a left_m = N - K_1 - ... - K_m, so sum_{m' <= m} sum_a left_m z_m' (df^m' + dt_m') = 0: one
        # triangular system per context, transposed here.
        system = torch.bmm(left.transpose(0, 1), arrivals.permute(1, 2, 0)).double()
        weight = torch.linalg.solve_triangular(system.mT, -gradient[:, :, None], upper=True).to(logits.dtype)
        per_arrival = left * weight.transpose(0, 1)
        for expert in reversed(range(num_races - 1)):  # expert m answers for itself and for those behind it
            per_arrival[expert] += per_arrival[expert + 1]
        result = per_arrival.mul_(arrivals).transpose(0, 1)
        if num_races < logits.shape[1]:
            result = torch.cat([result, torch.zeros_like(logits[:, num_races:])], dim=1)
        if not is_easy.all():
            hard = ~is_easy
            result[hard] = hard_gradient(logits[hard], times[hard], gradient[hard]).to(result.dtype)
        return result, None


def hard_gradient(logits: Tensor, times: Tensor, gradient: Tensor) -> Tensor:
    """What `gradient` by the stopping times is by the logits, in float64, where a race may end sharply.

    Race m: sum_a s_m (1 - e^-z_m) = K_m with s_m = exp(-Z_(m-1)). With came = s_m (1 - e^-z_m) and left = exp(-Z_m),
    its differential sum_a left z_m (df^m + dt_m) - sum_{m' < m} sum_a came z_m' (df^m' + dt_m') is 0; adding the races
    before, so is the same with `left` instead of `-came`. Whichever is smaller loses nothing to cancellation.

    Args:
        logits: (B, M, N).
        times: log tau, (B, min(M, K)).
        gradient: (B, min(M, K)).

    Returns:
        (B, M, N), float64.
    """
    num_races = times.shape[1]
    exposed = logits[:, :num_races] + times[:, :, None]
    if logits.shape[1] == 1:  # dt = - q df with q = s / sum s, s = z e^-z: a softmax, whatever the logits' size
        return (exposed - exposed.exp()).softmax(dim=2).mul_(-gradient[:, :, None])
    arrivals = exposed.exp_()
    left = arrivals.cumsum(dim=1).neg_().exp_()
    came = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], dim=1).mul_(torch.expm1(-arrivals))  # negative
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


def solve(rates: Tensor, left: Tensor | None, size: int, out: Tensor) -> tuple[Tensor, Tensor]:
    """log tau of one expert's race: sum_a left(a) (1 - e^-z(a)) = size, z = e^(rates + log tau).

    Halley's iteration on the logarithm of both sides, in the logits' own precision: every term is positive, so the sums
    keep it whatever N is. The first guess is exact for n equal items, n = (sum w)^2 / sum w^2 of the rates w.

    Args:
        rates: f, (B, N).
        left: e^-Z of the experts before, (B, N), or None before the first race.
        size: expected arrivals in this race.
        out: where z is written, (B, N).

    Returns:
        (B,) float64, and whether it is the solution, (B,): not so where the sum is flat, or a weight underflows.
    """
    largest = rates.amax(dim=1, keepdim=True)
    weights = (rates - largest).exp_()
    mass = weights if left is None else weights * left
    total = mass.sum(dim=1)
    crowding = (torch.linalg.vecdot(weights, mass) * (size / total.square())).clamp_(max=CROWDED)
    log_times = (-torch.log1p(-crowding) / crowding * (size / total)).log()
    for _ in range(MAX_STEPS):
        exposed = weights * -log_times.exp()[:, None]  # -z
        came = torch.expm1(exposed)
        if left is not None:
            came *= left
        arrived = -came.sum(dim=1)
        flow = came.add_(1 if left is None else left).mul_(exposed)
        slope = -flow.sum(dim=1)
        excess, rise = (arrived / size).log(), slope / arrived
        bend = (slope - torch.linalg.vecdot(exposed, flow)) / arrived - rise.square()
        step = -2 * excess * rise / (2 * rise.square() - excess * bend)
        log_times = log_times + step.clamp(-3, 3)
        is_even = slope > EVEN * size
        is_solved = (step.abs() < LAST) & is_even
        if (is_solved | ~is_even).all():
            break
    torch.mul(weights, log_times.exp()[:, None], out=out)
    return log_times.double() - largest[:, 0], is_solved


def polish(rates: Tensor, exposure: Tensor | None, times: Tensor, taken: int, size: int) -> Tensor:
    """What `solve` leaves, in float64: Newton from a first guess, kept inside a bracket; finished by `solve_flat`.

    The sum is flat where the items that are in are sure to be and the others sure not to be. Contexts that have
    converged are set aside.

    Args:
        rates: (B, N) float64.
        exposure: (B, N) float64 or None.
        times: first guess of log tau, (B,); may be nan.
        taken: expected arrivals before this race.
        size: expected arrivals in this race.
    """
    left_before = rates.shape[1] - taken
    # since 1 - e^-z <= z, a lower bound
    low = math.log(size) - (rates if exposure is None else rates - exposure).logsumexp(dim=1) - 1e-3
    times = torch.where(times > low, times, low)
    solution = times.clone()
    flat = torch.zeros(len(rates), dtype=torch.bool, device=rates.device)
    rows = torch.arange(len(rates), device=rates.device)
    high = math.log(math.log(rates.shape[1]) + 40) - rates.amin(dim=1)  # everything has arrived
    f, before = rates, exposure
    for _ in range(MAX_BISECTIONS):
        arrivals = (f + times[:, None]).exp_()
        left = (arrivals.neg() if before is None else (arrivals + before).neg_()).exp_()
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
        rows, f, times, low, high = (value[keep] for value in (rows, f, times, low, high))
        before = None if before is None else before[keep]
    if flat.any():
        before = None if exposure is None else exposure[flat]
        solution[flat] = solve_flat(rates[flat], before, taken, size)
    return solution


def solve_flat(rates: Tensor, exposure: Tensor | None, taken: int, size: int) -> Tensor:
    """log tau where plain sums cannot tell it: balance those that are in but left against those that are out but came.

    With T the `size` items that most probably arrive, sum_a p(a) = |T| says sum_T (1 - p) = sum_{not T} p: small terms
    on both sides, compared in log space, so nothing cancels. That holds for the arrivals of this race,
    p = s (1 - e^-z) with s = e^-exposure (DESIGN §4), and for those of all races so far, p = 1 - e^-(exposure + z). The
    first is exact where a race before it ended sharply, the second where it left items in between: whichever balances
    less is taken.

    Args:
        rates: (B, N) float64.
        exposure: Z before this race, (B, N), or None.
        taken: expected arrivals before this race.
        size: expected arrivals in this race.

    Returns:
        (B,).
    """

    def so_far(log_z: Tensor) -> tuple[Tensor, Tensor]:
        log_exposure = log_z if exposure is None else torch.logaddexp(exposure.log(), log_z)
        return log_arrival_probability(log_exposure), -log_exposure.exp()

    if exposure is None:
        return balance(so_far, rates, size)[0]

    def in_this_race(log_z: Tensor) -> tuple[Tensor, Tensor]:
        came = log_arrival_probability(log_z) - exposure
        return came, torch.logaddexp(log_arrival_probability(exposure.log()), -exposure - log_z.exp())

    first, first_left = balance(so_far, rates, taken + size)
    second, second_left = balance(in_this_race, rates, size)
    return torch.where(first_left < second_left, first, second)


def balance(
    came_and_left: Callable[[Tensor], tuple[Tensor, Tensor]], rates: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Bisect log tau until the items behind the first `size` came as much as those in front are left.

    Args:
        came_and_left: log z (B, N) -> log p and log(1 - p), (B, N).
        rates: (B, N).
        size: |T|.

    Returns:
        log tau and the logarithm of what balances, (B,) each.
    """
    # 1 - e^-z <= z below; above, even z of the last item is so large that its e^-z underflows
    low, high = -rates.logsumexp(dim=1) - 1e-3, 100 - rates.amin(dim=1)
    for _ in range(64):
        times = (low + high) / 2
        log_came, log_left = came_and_left(rates + times[:, None])
        in_front = torch.zeros_like(rates, dtype=torch.bool).scatter_(1, log_came.topk(size, dim=1).indices, True)
        left = torch.where(in_front, log_left, -torch.inf).logsumexp(dim=1)
        came = torch.where(in_front, -torch.inf, log_came).logsumexp(dim=1)
        too_early = left > came
        low, high = torch.where(too_early, times, low), torch.where(too_early, high, times)
    return (low + high) / 2, left
