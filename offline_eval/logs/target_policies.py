"""Target policies: what a checkpoint or a bundle would do in the contexts of a log, and how probable it makes the log.

Axes: R rounds, B rounds at once, L slots, K candidates, M experts, N items, D embedding dimension.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.config import SlotWeightsName
from esr_trainer.drawn_inclusion import log_drawn_inclusion
from esr_trainer.estimators import v
from esr_trainer.slots import SLOT_WEIGHTS
from offline_eval.logs.logged_rounds import LoggedRounds, rows_of
from offline_eval.logs.slate_probabilities import log_of_slots, log_of_slots_alone
from offline_eval.logs.weighed_rounds import WeighedRounds
from serving.bundle import MANIFEST, latest_version, load_bundle, published_versions
from serving.contexts import Contexts
from serving.errors import ServingError

CELLS = 4_000_000
"""Logits that are held at once, unless one context has more."""

LARGEST_LOG_RATIO = 300.0
"""Squares of such weights still are float64."""

ROUNDING = 1e-6
"""What the server logs and what is worked out here may differ by, and be the same: see `serving.sampling`."""

Logits = Callable[[np.ndarray], np.ndarray]
"""Rows of contexts (B,) -> (B, M, N) float64."""


class TargetPolicy(NamedTuple):
    """The sampled policy of an ESR: Plackett-Luce over a mixture, as trained and as served."""

    name: str
    context_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    """N."""
    num_experts: int
    """M."""
    logits: Logits


def ids_of(policy: TargetPolicy) -> tuple[pl.Series, pl.Series]:
    """Ids of its contexts and of its items."""
    context_ids, item_ids = (pl.Series(ids, dtype=pl.String) for ids in (policy.context_ids, policy.item_ids))
    return context_ids, item_ids


def without_rounding(log_ratios: np.ndarray) -> np.ndarray:
    """The policy that logged weighs 1, exactly: else it would surely be worse than itself, by 1e-16."""
    return np.where(np.abs(log_ratios) < ROUNDING, 0.0, log_ratios)


def open_policy(path: Path) -> TargetPolicy:
    """The policy of a run or checkpoint directory, of a bundle root (its latest version) or of a version's directory.

    Raises:
        UsageError: there is none, it cannot be read, or its index is approximate.
    """
    if not (path / MANIFEST).is_file() and not published_versions(path):
        return of_checkpoint(path)
    try:
        return of_bundle(path)
    except ServingError as error:
        raise UsageError(f"bundle ({path}) cannot be used: {error}") from error


def of_checkpoint(path: Path) -> TargetPolicy:
    """The policy of a run's last checkpoint, or of a checkpoint."""
    policy = Checkpoint(path).policy()

    def logits(contexts: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = policy(torch.from_numpy(contexts)).double().numpy()
        return found

    tower = policy.context_tower
    return TargetPolicy(str(path), tower.features.ids, policy.item_tower.features.ids, tower.shape[1], logits)


def of_bundle(path: Path) -> TargetPolicy:
    """The policy of a bundle with an exact index, as a server draws from it."""
    directory = path if (path / MANIFEST).is_file() else path / str(latest_version(path))
    bundle = load_bundle(directory, int(directory.name) if directory.name.isdigit() else 1)
    if not bundle.index.is_exact:
        raise UsageError(f"candidate ({path}): a draw needs an exact index, this bundle's is {bundle.manifest.index}")
    contexts, experts = Contexts(bundle, "not-found"), range(bundle.manifest.num_experts)

    def logits(rows: np.ndarray) -> np.ndarray:
        embeddings = contexts.embed(rows)  # (B, M, D)
        scores = [[bundle.index.scores(one[expert], expert) for expert in experts] for one in embeddings]
        return np.array(scores, dtype=np.float64)

    ids = tuple(bundle.context_ids), tuple(bundle.item_ids)
    return TargetPolicy(str(path), *ids, bundle.manifest.num_experts, logits)


class Weigher:
    """Weighs pages of a log for one policy."""

    def __init__(self, policy: TargetPolicy) -> None:
        self.policy = policy
        self._context_ids, self._item_ids = ids_of(policy)

    def weigh(self, page: LoggedRounds, slot_weights: SlotWeightsName) -> WeighedRounds:
        """What off-policy estimators read.

        Rounds with candidates: inclusion and candidate-set ratios, for as many candidates as each round had, among all
        items (what a request excluded, the log does not tell). Rounds that showed one item: the policy as it retrieves
        one, whose probabilities are the softmax of its first expert. Slates: the policy as it retrieves as many, shown
        in the order drawn.

        Args:
            page: rounds of a log.
            slot_weights: how much a slot counts, by the number of slots that a round filled.

        Raises:
            UsageError: the policy does not know a context.
        """
        contexts = self.context_rows(page.contexts)
        slate = rows_of(page.slate, self._item_ids).reshape(page.rewards.shape)
        rounds = WeighedRounds(weighted_rewards(page, slot_weights), page.shown)
        if page.candidates is None and (page.rewards.shape[1] > 1 or page.log_marginals is not None):
            return self._of_slates(rounds, page, contexts, slate)
        if page.candidates is None:
            return self._of_items(rounds, page, contexts, slate)
        return self._of_candidates(rounds, page, contexts, slate)

    def context_rows(self, ids: pl.Series) -> np.ndarray:
        """The rows of contexts, (R,)."""
        rows = rows_of(ids, self._context_ids)
        if (unknown := np.flatnonzero(rows < 0)).size:
            first = ids[int(unknown[0])]
            raise UsageError(f"log: {self.policy.name} does not know context_id ({first}); a policy must know them all")
        return rows

    def _of_items(
        self, rounds: WeighedRounds, page: LoggedRounds, contexts: np.ndarray, slate: np.ndarray
    ) -> WeighedRounds:
        assert page.log_propensities is not None
        log_ratios, agrees = np.empty(len(contexts)), np.empty(len(contexts), dtype=bool)
        for rows, unique, place in self.blocks(contexts):
            log_softmax = self.log_softmax(unique)
            log_ratios[rows] = gathered(log_softmax, place, slate[rows])[:, 0] - page.log_propensities[rows, 0]
            agrees[rows] = log_softmax.argmax(axis=1)[place] == slate[rows, 0]
        self.refuse_beyond(log_ratios)
        return rounds._replace(log_ratios=without_rounding(log_ratios)[:, None], agrees=agrees)

    def log_softmax(self, contexts: np.ndarray) -> np.ndarray:
        """Log-probability of every item where one is retrieved: (B,) -> (B, N)."""
        logits = self.policy.logits(contexts)[:, 0]
        largest = logits.max(axis=1, keepdims=True)
        log_softmax: np.ndarray = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        return log_softmax

    def _of_slates(
        self, rounds: WeighedRounds, page: LoggedRounds, contexts: np.ndarray, slate: np.ndarray
    ) -> WeighedRounds:
        assert page.log_propensities is not None
        given_above, alone, filled = np.zeros(slate.shape), np.zeros(slate.shape), rounds.shown.sum(axis=1)
        for num_slots in np.unique(filled).tolist():
            alike = np.flatnonzero(filled == num_slots)
            for block, unique, place in self.blocks(contexts[alike]):
                rows, logits = alike[block], torch.from_numpy(self.policy.logits(unique))
                given_above[rows, :num_slots] = log_of_slots(logits[place], slate[rows, :num_slots])
                if page.log_marginals is not None:
                    alone[rows, :num_slots] = log_of_slots_alone(logits, place, slate[rows, :num_slots])
        ratios = without_rounding(given_above - page.log_propensities)
        self.refuse_beyond(ratios.sum(axis=1))
        if page.log_marginals is None:
            return rounds._replace(log_ratios=ratios)
        of_slots = without_rounding(alone - page.log_marginals)
        self.refuse_beyond(of_slots)
        return rounds._replace(log_ratios=ratios, log_marginal_ratios=of_slots)

    def _of_candidates(
        self, rounds: WeighedRounds, page: LoggedRounds, contexts: np.ndarray, slate: np.ndarray
    ) -> WeighedRounds:
        assert page.candidates is not None
        assert page.log_inclusion is not None
        assert page.log_set_probability is not None
        candidates = rows_of(page.candidates, self._item_ids).reshape(len(contexts), -1)
        present = page.num_candidates
        log_inclusion, log_set = np.zeros(slate.shape), np.empty(len(contexts))
        for num_candidates in np.unique(present).tolist():
            alike = np.flatnonzero(present == num_candidates)
            for block, unique, place in self.blocks(contexts[alike]):
                rows = alike[block]
                logits = torch.from_numpy(self.policy.logits(unique))
                inclusion = log_drawn_inclusion(logits, num_candidates).numpy()
                log_inclusion[rows] = gathered(inclusion, place, slate[rows])
                drawn = candidates[rows, :num_candidates]
                known = (drawn >= 0).all(axis=1)  # what is not in the catalogue is never drawn
                rest = torch.from_numpy(np.maximum(drawn, 0))
                log_set[rows] = np.where(known, v(logits[place], rest[:, :1], rest)[:, 0].numpy(), -np.inf)
        log_inclusion = without_rounding(log_inclusion - page.log_inclusion)
        log_set = without_rounding(log_set - page.log_set_probability)
        self.refuse_beyond(log_inclusion)
        self.refuse_beyond(log_set)
        return rounds._replace(log_inclusion_ratios=np.where(rounds.shown, log_inclusion, 0.0), log_set_ratios=log_set)

    def inclusion_of_all(self, page: LoggedRounds) -> tuple[np.ndarray, np.ndarray]:
        """Inclusion probability of every item in the page's first rounds, and whether it was a candidate: (R', N) each.

        Of the rounds with as many candidates as the first, as many as fit into memory.
        """
        assert page.candidates is not None
        candidates = rows_of(page.candidates, self._item_ids).reshape(len(page.contexts), -1)
        present = page.num_candidates
        num_candidates, num_items = int(present[0]), len(self._item_ids)
        rows = np.flatnonzero(present == num_candidates)[: max(1, CELLS // num_items)]
        contexts, inclusion = self.context_rows(page.contexts)[rows], np.empty((len(rows), num_items))
        for block, unique, place in self.blocks(contexts):
            logits = torch.from_numpy(self.policy.logits(unique))
            inclusion[block] = log_drawn_inclusion(logits, num_candidates).exp().numpy()[place]
        is_candidate = np.zeros(inclusion.shape, dtype=bool)
        np.put_along_axis(is_candidate, candidates[rows, :num_candidates], True, axis=1)
        return inclusion, is_candidate

    def refuse_beyond(self, log_ratios: np.ndarray) -> None:
        """Weights have the mean 1, so one of W comes with a probability of at most 1 / W (Markov)."""
        if (largest := float(log_ratios.max(initial=-np.inf))) > LARGEST_LOG_RATIO:
            raise UsageError(
                f"log: a weight of {self.policy.name} is e^{largest:.0f}; above e^{LARGEST_LOG_RATIO:.0f} the logged "
                "propensities cannot be right"
            )

    def blocks(self, contexts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rounds whose logits fit into memory: their numbers, their distinct contexts, each one's place in those."""
        size = max(1, CELLS // (self.policy.num_experts * len(self.policy.item_ids)))
        order = np.argsort(contexts, kind="stable")
        blocks = [order[start : start + size] for start in range(0, len(order), size)]
        return [(rows, *np.unique(contexts[rows], return_inverse=True)) for rows in blocks]


def weighted_rewards(page: LoggedRounds, slot_weights: SlotWeightsName) -> np.ndarray:
    """Rewards times their slots' weights, (R, L)."""
    rewards, filled = page.rewards.copy(), page.shown.sum(axis=1)
    for count in np.unique(filled).tolist():
        rewards[filled == count, :count] *= SLOT_WEIGHTS[slot_weights](count).double().numpy()
    return rewards


def gathered(table: np.ndarray, place: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Log-probabilities of items, -inf of those not in the catalogue: (U, N), (B,), (B, L) -> (B, L)."""
    return np.where(items >= 0, table[place[:, None], np.maximum(items, 0)], -np.inf)
