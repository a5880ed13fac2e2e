"""Worlds of full labels, with what the towers and the ranker of Ma et al. (WWW 2020) know of contexts and items."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer.command_line import UsageError
from esr_trainer.environments import read_world
from esr_trainer.features import Features, id_features
from esr_trainer.vocabularies import Categories
from esr_trainer.world import World
from offline_eval.procedures.ranked_labels import CUTS

EVERYBODY = "everybody"
"""A feature that all contexts share."""


class LabelledWorld(NamedTuple):
    """Labels, 0 or 1, of every item in every context, and features."""

    world: World
    """Its expected rewards are the labels."""
    contexts: Features
    """C rows."""
    items: Features
    """N rows."""
    cuts: tuple[int, ...] = CUTS
    """n of Precision@n, Recall@n and NDCG@n."""

    @property
    def towers(self) -> tuple[Features, Features]:
        """What the ESR's towers know: with a feature that all contexts share, so that an item has a bias of its own."""
        shared = np.zeros((self.world.num_contexts, 1), np.int64)
        vocabularies = {**self.contexts.vocabularies, EVERYBODY: Categories([EVERYBODY])}
        return Features(vocabularies, {**self.contexts.bags, EVERYBODY: shared}), self.items


def kuairec_labels(path: Path) -> LabelledWorld:
    """KuaiRec's real labels by small_matrix_gt2.npz; ids alone, no simulator.

    Raises:
        UsageError: it is something else.
    """
    world = read_world(path)
    if not ((world.expected_reward == 0) | (world.expected_reward == 1)).all():
        raise UsageError(f"data ({path}) holds rewards that are no labels, 0 or 1: take small_matrix_gt2.npz")
    return LabelledWorld(world, id_features(world.context_ids), id_features(world.item_ids))
