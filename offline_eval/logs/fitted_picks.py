"""How probable a policy makes what a log shows, slot by slot, with the log's own LSR behind it as fitted to the log.

Axes: R rounds, B contexts at once, N items, K candidates, L slots.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from esr_trainer.command_line import UsageError
from esr_trainer.drawn_inclusion import log_drawn_inclusion
from offline_eval.logs.log_options import GreedyRounds
from offline_eval.logs.log_reader import read_rounds
from offline_eval.logs.logged_rounds import LoggedRounds, rows_of
from offline_eval.logs.lsr_choices import HELD_OUT, Choices, Fit, LsrChoices, choices_of, fit_choices, side_by_side
from offline_eval.logs.ope_estimators import OpeEstimatorName
from offline_eval.logs.picked_probabilities import Picks, num_roots, picks
from offline_eval.logs.target_policies import CELLS, TargetPolicy, Weigher, ids_of, without_rounding
from offline_eval.logs.weighed_rounds import WeighedRounds

LARGEST_LOG = 200_000
"""Rounds that an LSR is fitted to, evenly spread over a larger log."""

SAME = 1e-2
"""Log-probabilities of candidates that one policy gives, as trained and as served, lie closer than this."""

OF_BOTH_STAGES: tuple[OpeEstimatorName, ...] = ("sn-iips", "iips")
"""Estimators of a feedback log for which its LSR is fitted."""

NEEDS_THE_LOGGED = f"{' and '.join(OF_BOTH_STAGES)} need the policy that logged as the baseline"

LAPSE = 0.003
"""Share of the slots that the LSR is taken to fill at random: what it was seen to do, no model calls impossible."""

TIMES = 100
"""About as many times of `Picks`, for what is held at once."""

KEPT = 1 << 29
"""Bytes of `Picks` that are kept for when their context comes again."""

Key = tuple[int, int, int]
"""Context, K, L."""


class FittedLsr(NamedTuple):
    """What an LSR makes of the candidates of the policy that logged."""

    model: LsrChoices
    fit: Fit
    context_ids: pl.Series
    item_ids: pl.Series
    """Of the policy that logged."""
    num_candidates: int
    num_slots: int
    """The most that a round had."""

    @property
    def nbytes(self) -> int:
        """Of what `PickedSlots` would keep of all contexts, about."""
        of_slots = 2 * 2 * self.num_slots * TIMES * num_roots(self.num_candidates)  # two products of complex numbers
        return 8 * len(self.context_ids) * (2 * len(self.item_ids) + of_slots)


def fit_lsr(log: str, greedy: GreedyRounds, logged_by: Weigher, num_rounds: int) -> FittedLsr:
    """Fit the LSR of a feedback log.

    Args:
        log: see `read_rounds`.
        greedy: see `read_rounds`.
        logged_by: of the policy that drew every candidate.
        num_rounds: of the log, about.

    Raises:
        UsageError: the log cannot be read, is too short, or another policy drew some of its candidates.
    """
    stride, count, parts = math.ceil(num_rounds / LARGEST_LOG), 0, []
    for page in read_rounds(log, greedy):
        check_logged_by(logged_by.policy.name, logged_by.weigh(page, "sum"))
        taken = torch.arange(len(page.contexts))
        parts.append(choices_of(page, *ids_of(logged_by.policy)).take(taken[(taken + count) % stride == 0]))
        count += len(page.contexts)
    if (num_fitted := sum(len(part.contexts) for part in parts)) < HELD_OUT:
        raise UsageError(f"log ({log}) has {num_fitted} rounds; an LSR is fitted to {HELD_OUT} or more")
    return fit_rounds(side_by_side(parts), logged_by.policy)


def has_logged(rounds: WeighedRounds) -> bool:
    """Whether a policy drew the candidates of these rounds: it finds them as probable as the log does."""
    return rounds.log_set_ratios is not None and bool((np.abs(rounds.log_set_ratios) < SAME).all())


def check_logged_by(name: str, rounds: WeighedRounds) -> None:
    """Refuse rounds whose candidates a policy did not draw.

    Raises:
        UsageError: names it.
    """
    if not has_logged(rounds):
        raise UsageError(f"log: {NEEDS_THE_LOGGED}, and {name} did not draw all of its rounds")


def fit_rounds(choices: Choices, logged_by: TargetPolicy) -> FittedLsr:
    """Fit an LSR to what it chose from the candidates of a policy, at least HELD_OUT times."""
    ids = ids_of(logged_by)
    sizes = choices.candidates.shape[1], choices.slate.shape[1]
    return FittedLsr(*fit_choices(choices, *map(len, ids)), *ids, *sizes)


class PickedSlots:
    """A policy with a fitted LSR behind it."""

    def __init__(self, weigher: Weigher, lsr: FittedLsr) -> None:
        self.weigher, self.lsr = weigher, lsr
        context_ids, self._item_ids = ids_of(weigher.policy)
        self._contexts = rows_of(context_ids, lsr.context_ids)
        self._items = torch.from_numpy(rows_of(self._item_ids, lsr.item_ids).copy())
        self._kept: dict[Key, Picks] = {}
        self._bytes = 0

    def weigh(self, rounds: WeighedRounds, page: LoggedRounds) -> WeighedRounds:
        """Add the ratios of slots alone to what the policy makes of a page.

        Raises:
            UsageError: a ratio is larger than any can be.
        """
        assert page.log_marginals is not None
        ratios = without_rounding(self.log_chance(page) - page.log_marginals)
        self.weigher.refuse_beyond(ratios)
        return rounds._replace(log_marginal_ratios=ratios)

    def log_chance(self, page: LoggedRounds) -> np.ndarray:
        """log P(a_l in slot l | x), (R, L); -inf of an item that is not in the catalogue, 0 in an empty slot."""
        contexts = self.weigher.context_rows(page.contexts)
        slate = rows_of(page.slate, self._item_ids).reshape(page.rewards.shape)
        log_chance = np.where(page.shown, -np.inf, 0.0)
        for num_candidates in np.unique(page.num_candidates).tolist():
            alike = np.flatnonzero(page.num_candidates == num_candidates)
            slots = np.arange(min(num_candidates, page.rewards.shape[1]))
            for context, own in self._picks(np.unique(contexts[alike]), num_candidates, len(slots)):
                rows = alike[contexts[alike] == context]
                shown = slate[np.ix_(rows, slots)]
                items, place = np.unique(np.maximum(shown, 0), return_inverse=True)
                random = np.log(LAPSE / num_candidates) + own.log_inclusion[items, None]
                either = np.logaddexp(np.log1p(-LAPSE) + own.log_chance(items), random)  # (J, L)
                of_slots = either[place.reshape(shown.shape), slots]
                log_chance[np.ix_(rows, slots)] = np.where(shown >= 0, of_slots, log_chance[np.ix_(rows, slots)])
        return log_chance

    def _picks(self, contexts: np.ndarray, num_candidates: int, num_slots: int) -> Iterator[tuple[int, Picks]]:
        """What contexts' chances are read from, remembered from page to page."""
        numbers = TIMES * max(len(self._items), 16 * num_slots * num_roots(num_candidates))
        for block in np.array_split(contexts, math.ceil(len(contexts) * numbers / CELLS)):
            keys = [(context, num_candidates, num_slots) for context in block.tolist()]
            found = {key: self._kept[key] for key in keys if key in self._kept}
            if missing := [key for key in keys if key not in found]:
                found |= dict(zip(missing, self._worked_out(missing), strict=True))
                self._keep({key: found[key] for key in missing})
            yield from ((key[0], found[key]) for key in keys)

    def _keep(self, some: Mapping[Key, Picks]) -> None:
        self._kept |= some
        self._bytes += sum(own.nbytes for own in some.values())
        while self._bytes > KEPT:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes  # the one that was worked out first

    def _worked_out(self, keys: Sequence[Key]) -> list[Picks]:
        contexts = np.array([context for context, _, _ in keys])
        _, num_candidates, num_slots = keys[0]
        logits = torch.from_numpy(self.weigher.policy.logits(contexts))
        utilities = self.lsr.model.utilities(torch.from_numpy(self._contexts[contexts]), self._items)
        return picks(log_drawn_inclusion(logits, num_candidates).numpy(), utilities, num_candidates, num_slots)
