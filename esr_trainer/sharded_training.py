"""A run that is shared out among processes: the same batch, the same rounds and the same loss everywhere.

Axes: B batch, M experts, N items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from esr_trainer.checkpoint import keep_last_and_best
from esr_trainer.config import TrainConfig
from esr_trainer.interaction import interact
from esr_trainer.policy_value import System
from esr_trainer.ranks import Ranks
from esr_trainer.sharded_checkpoint import save_sharded
from esr_trainer.sharded_towers import ShardedRanker, place
from esr_trainer.training import Played, Trainer, at_first_step, place_of, read_catalogue
from esr_trainer.world import World


@dataclass(kw_only=True)
class ShardedTrainer(Trainer):
    """A run of which every process has a part of the tables; all else, the draws too, is the same everywhere."""

    policy: ShardedRanker

    @classmethod
    def play(cls, learners: Sequence[Self]) -> Played:
        """The round of the run, over everybody's items."""
        (learner,) = learners
        contexts = learner.draw_contexts()
        logits = learner.policy(contexts)
        round_ = interact(learner.world, learner.system, contexts, logits, learner.generator)
        return Played(contexts, logits, round_, place_of(round_))

    @property
    def kept_alone(self) -> Mapping[str, Tensor]:
        """What this process goes on from and no other."""
        return {}

    def save(self, run: Path) -> Path:
        """Write a checkpoint of this moment, each process its rows; keep the last and the best."""
        parts = (self.policy, self.optimizer, self.state, self.grounds.ranker, self.kept_alone)
        directory = save_sharded(run, self.description, *parts)
        self.policy.ranks.told(lambda: keep_last_and_best(run, self.criterion))
        return directory


def new_sharded_trainer(
    config: TrainConfig,
    world: World,
    system: System,
    sharding: str,
    ranks: Ranks,
    kind: type[ShardedTrainer] = ShardedTrainer,
) -> ShardedTrainer:
    """A run at its first step: tables drawn from the seed as one process would, nothing valued yet."""
    contexts, items = read_catalogue(config, world)
    places = place(contexts, items, config, sharding, ranks)
    return at_first_step(kind, config, world, system, ShardedRanker(contexts, items, config, places, ranks))
