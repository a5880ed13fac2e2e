"""Reward models fitted to a log, each used only on rounds that it was not fitted to (cross-fitting).

Axes: R rounds, C contexts, N items, F folds.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from esr_trainer import reward_model
from esr_trainer.command_line import UsageError
from esr_trainer.reward_model import Interactions
from esr_trainer.world import check_size
from offline_eval.logs.log_reader import read_rounds
from offline_eval.logs.logged_rounds import LoggedRounds, rows_of
from offline_eval.logs.target_policies import TargetPolicy, Weigher
from offline_eval.logs.weighed_rounds import WeighedRounds

FOLDS = 2
"""Round n belongs to fold n mod FOLDS."""


class FittedRewards(NamedTuple):
    """Expected rewards for the rounds of each fold, fitted to the rounds of the others."""

    context_ids: pl.Series
    item_ids: pl.Series
    expected: np.ndarray
    """(F, C, N) float32, within the range of the log's rewards."""

    def predict(
        self, rounds: WeighedRounds, page: LoggedRounds, numbers: np.ndarray, weigher: Weigher
    ) -> WeighedRounds:
        """Add q(x, a) of the shown item and sum_a pi_e(a | x) q(x, a) to rounds of one slot.

        Args:
            rounds: of the page, for the weigher's policy.
            page: what was logged.
            numbers: the rounds' places in the log, (R,).
            weigher: of the target policy.
        """
        contexts, items = rows_of(page.contexts, self.context_ids), rows_of(page.slate, self.item_ids)
        own, folds = weigher.context_rows(page.contexts), numbers % FOLDS
        catalogue = rows_of(pl.Series(weigher.policy.item_ids, dtype=pl.String), self.item_ids)
        value = np.empty(len(contexts))
        for rows, unique, place in weigher.blocks(own):
            first = rows[np.unique(place, return_index=True)[1]]  # a round of each distinct context
            probability = np.exp(weigher.log_softmax(unique))
            for fold in range(FOLDS):
                of_context = (probability * self.expected[fold][contexts[first]][:, catalogue]).sum(axis=1)
                mine = folds[rows] == fold
                value[rows[mine]] = of_context[place[mine]]
        predicted = self.expected[folds, contexts, items].astype(np.float64)
        return rounds._replace(predicted=predicted, predicted_value=value)


def fit_rewards(log: str, policies: Sequence[TargetPolicy]) -> FittedRewards:
    """Fit a model per fold to a log of one item per round, which is held in memory for it.

    Args:
        log: see `read_rounds`.
        policies: what the models answer for: the contexts of the first, the items of all.

    Raises:
        UsageError: a context or an item of the log is none of theirs.
    """
    context_ids = pl.Series(policies[0].context_ids, dtype=pl.String)
    item_ids = pl.Series(
        list(dict.fromkeys(chain.from_iterable(policy.item_ids for policy in policies))), dtype=pl.String
    )
    check_size(len(context_ids), len(item_ids))
    contexts, items, rewards = [], [], []
    for page in read_rounds(log):
        contexts.append(known_rows(page.contexts, context_ids, "context_id"))
        items.append(known_rows(page.slate, item_ids, "item_id"))
        rewards.append(torch.from_numpy(page.rewards[:, 0].astype(np.float32)))
    shown = Interactions(torch.cat(contexts), torch.cat(items), torch.cat(rewards), torch.ones(sum(map(len, rewards))))
    if len(shown.rewards) < 2 * FOLDS:
        raise UsageError(f"log ({log}) has {len(shown.rewards)} rounds; a reward model needs {2 * FOLDS} or more")
    lowest, highest = shown.rewards.min(), shown.rewards.max()
    fold_of = torch.arange(len(shown.rewards)) % FOLDS
    expected = [
        reward_model.fit(
            shown.take(torch.nonzero(fold_of != fold)[:, 0]),
            len(context_ids),
            len(item_ids),
            fold,
            "fitting the reward model",
        )[0]
        .matrix()
        .clamp(lowest, highest)
        .numpy()
        for fold in range(FOLDS)
    ]
    return FittedRewards(context_ids, item_ids, np.stack(expected))


def known_rows(ids: pl.Series, known: pl.Series, name: str) -> torch.Tensor:
    """Rows of ids that must all be known."""
    rows = rows_of(ids, known)
    if (unknown := np.flatnonzero(rows < 0)).size:
        raise UsageError(f"log: no policy knows {name} ({ids[int(unknown[0])]}), which a reward model needs")
    return torch.from_numpy(rows.copy())
