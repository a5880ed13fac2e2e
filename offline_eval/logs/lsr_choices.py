"""What an LSR makes of candidates, fitted to the choices in a log: which of them it put into which slot.

Plackett-Luce with utilities u(x, a) = b_a + <g_x, h_a> (Luce 1959, Plackett 1975): the LSR fills slot after slot, an
item of those that are left with probability proportional to e^u. The most probable parameters under a normal prior, so
what the log does not tell stays near 0, where the LSR is uniform. Where the LSR's own probability p of its choice was
logged, the choice counts as WITNESSES more that fell out as p says: the cross-entropy of p and the model's. Rewards are
not looked at: whoever weighs the same rounds by it fits nothing to what they earned.

Axes: R rounds, C contexts, N items, K candidates, L slots, D factors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from offline_eval.logs.logged_rounds import LoggedRounds, rows_of

FACTORS = 10
"""D."""
PRECISIONS = (1.0, 10.0)
"""Of the normal prior of g and h: the first that beats a uniform LSR on held-out choices, for the less it shrinks, the
less an estimate is biased."""
ITEM_PRECISION = 0.1
"""Of the normal prior of b."""
WITNESSES = 100.0
"""Choices that a logged probability of the LSR is worth."""
LEARNING_RATE = 0.1
STEPS, WITNESSED_STEPS = 100, 300
"""Without logged probabilities of the LSR, and with them: what they tell is worth more steps."""
BATCH = 4096
"""Rounds of a step, at most."""
NEVER_SURE = 1e-6
"""The model's least distance from a probability of 1, as what the LSR said of its choice is compared with."""
HELD_OUT = 10
"""One round of so many is only predicted."""


class Choices(NamedTuple):
    """What an LSR had to choose from, and what it chose."""

    contexts: Tensor
    """Rows, (R,)."""
    candidates: Tensor
    """Rows, (R, K); -1 beyond a round's own K, and for an item that the model does not know."""
    slate: Tensor
    """(R, L), each slot's item as a position among the candidates; -1 in an empty slot."""
    chances: Tensor
    """The LSR's own probability of each slot's item given those above, (R, L); nan where it was not logged."""

    def take(self, rows: Tensor) -> "Choices":
        """Some of them."""
        return Choices(*(values[rows] for values in self))


class Fit(NamedTuple):
    """How well a model predicts choices that it was not fitted to, in nats per filled slot; less is better."""

    model: float
    uniform: float
    """Of an LSR that has no favourites."""

    def __str__(self) -> str:
        return f"{self.model:.3f} nats per held-out choice (a uniform LSR: {self.uniform:.3f})"


class LsrChoices(nn.Module):
    """u(x, a) = b_a + <g_x, h_a>; 0 everywhere until it is fitted."""

    def __init__(self, num_contexts: int, num_items: int) -> None:
        super().__init__()
        self.contexts = nn.Parameter(torch.zeros(num_contexts, FACTORS))
        self.items = nn.Parameter(torch.zeros(num_items, FACTORS))
        self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(self, contexts: Tensor, items: Tensor) -> Tensor:
        """Utilities of (R,), (R, K) -> (R, K)."""
        match = nn.functional.embedding(items, self.items) @ nn.functional.embedding(contexts, self.contexts)[..., None]
        return match[..., 0] + self.bias[items]

    def penalty(self, precision: float) -> Tensor:
        """Minus the log-density of the parameters under the prior, up to a constant."""
        factors = self.contexts.square().sum() + self.items.square().sum()
        return (precision * factors + ITEM_PRECISION * self.bias.square().sum()) / 2

    @torch.no_grad()
    def utilities(self, contexts: Tensor, items: Tensor) -> np.ndarray:
        """Of items (N,) in contexts (B,), float64; 0, what nothing is known of, where a row is -1: -> (B, N)."""
        match = torch.where(contexts[:, None] >= 0, self.contexts[contexts] @ self.items[items].T, 0.0)
        utilities: np.ndarray = torch.where(items >= 0, match + self.bias[items], 0.0).double().numpy()
        return utilities


def log_chances(utilities: Tensor, choices: Choices) -> Tensor:
    """log P(a_l | x, A, a_<l), 0 in an empty slot: (R, K) -> (R, L)."""
    left, of_slots = utilities.masked_fill(choices.candidates < 0, -torch.inf), []
    for position in choices.slate.T:
        rows = torch.nonzero(position >= 0)[:, 0]
        picked, among = position[rows, None], left[rows]
        log_chance = among.gather(1, picked)[:, 0] - among.logsumexp(dim=1)
        of_slots.append(torch.zeros(len(left)).index_put((rows,), log_chance))
        left = left.index_put((rows, picked[:, 0]), torch.tensor(-torch.inf))
    return torch.stack(of_slots, dim=1)


def log_likelihood(log_chance: Tensor, choices: Choices) -> Tensor:
    """Of the choices, and of WITNESSES times what the LSR said of its own: (R, L) -> (R,)."""
    is_known = ~choices.chances.isnan()
    known, modelled = choices.chances[is_known], log_chance[is_known].clamp(max=-NEVER_SURE)
    said = known * modelled + (1 - known) * torch.log(-torch.expm1(modelled))
    return log_chance.sum(dim=1) + torch.zeros_like(log_chance).masked_scatter(is_known, WITNESSES * said).sum(dim=1)


def fit_choices(choices: Choices, num_contexts: int, num_items: int, seed: int = 0) -> tuple[LsrChoices, Fit]:
    """A model of a log's choices that predicts held-out ones better than a uniform LSR; that one where none does.

    What the LSR tells of its own probabilities is left aside where held-out choices are better predicted without.

    Args:
        choices: at least HELD_OUT rounds.
        num_contexts: C.
        num_items: N.
        seed: decides the start and the batches.
    """
    is_held_out = torch.arange(len(choices.contexts)) % HELD_OUT == HELD_OUT - 1
    fitted_to, held_out = choices.take(~is_held_out), choices.take(is_held_out)
    silent = fitted_to._replace(chances=torch.full_like(fitted_to.chances, math.nan))
    tellings = (silent,) if fitted_to.chances.isnan().all() else (fitted_to, silent)
    for precision in PRECISIONS:
        models = [trained(told, num_contexts, num_items, precision, seed) for told in tellings]
        model, fit = min(((model, fit_of(model, held_out)) for model in models), key=lambda one: one[1].model)
        if fit.model < fit.uniform:
            return model, fit
    return LsrChoices(num_contexts, num_items), fit._replace(model=fit.uniform)


def trained(choices: Choices, num_contexts: int, num_items: int, precision: float, seed: int) -> LsrChoices:
    """The most probable model of some choices."""
    model, generator = LsrChoices(num_contexts, num_items), torch.Generator().manual_seed(seed)
    for table in (model.contexts, model.items):
        nn.init.normal_(table, 0, 0.1, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    count, steps = len(choices.contexts), STEPS if choices.chances.isnan().all() else WITNESSED_STEPS
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        batch = choices if count <= BATCH else choices.take(torch.randint(count, (BATCH,), generator=generator))
        likelihood = log_likelihood(log_chances(model(batch.contexts, batch.candidates.clamp(min=0)), batch), batch)
        loss = model.penalty(precision) - likelihood.sum() * (count / len(likelihood))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def fit_of(model: LsrChoices, choices: Choices) -> Fit:
    """How well it predicts some choices."""
    filled = int((choices.slate >= 0).sum())
    utilities = model(choices.contexts, choices.candidates.clamp(min=0))
    both = (log_chances(values, choices) for values in (utilities, torch.zeros_like(utilities)))
    return Fit(*(-float(values.sum()) / filled for values in both))


def choices_of(page: LoggedRounds, context_ids: pl.Series, item_ids: pl.Series) -> Choices:
    """What a page of rounds with candidates tells of the LSR; all its ids are known."""
    assert page.candidates is not None
    num_rounds, num_slots = page.rewards.shape
    candidates = rows_of(page.candidates, item_ids).reshape(num_rounds, -1)
    slate = rows_of(page.slate, item_ids).reshape(num_rounds, num_slots)
    positions = (candidates[:, None, :] == slate[:, :, None]).argmax(axis=2)
    chances = np.full(slate.shape, np.nan) if page.lsr_probabilities is None else page.lsr_probabilities
    filled = np.where(page.shown, positions, -1)
    contexts = torch.from_numpy(rows_of(page.contexts, context_ids).copy())
    return Choices(contexts, *map(torch.from_numpy, (candidates.copy(), filled, chances.astype(np.float32))))


def side_by_side(parts: Sequence[Choices]) -> Choices:
    """Rounds one after the other; rows of fewer candidates or slots are filled up."""
    contexts, *others = zip(*parts, strict=True)
    fillers = (-1, -1, math.nan)
    return Choices(torch.cat(contexts), *(stacked(part, filler) for part, filler in zip(others, fillers, strict=True)))


def stacked(parts: Sequence[Tensor], filler: float) -> Tensor:
    """Matrices of several widths, one below the other."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1]), value=filler) for part in parts])
