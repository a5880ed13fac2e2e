"""A run that is shared out among processes: the same batch, the same rounds and the same loss everywhere.

Axes: B batch, M experts, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from esr_trainer.checkpoint import Checkpoint, keep_last_and_best
from esr_trainer.config import TrainConfig
from esr_trainer.interaction import interact
from esr_trainer.learner import Learner
from esr_trainer.policy_value import System
from esr_trainer.preparation import InWorld
from esr_trainer.ranks import Ranks
from esr_trainer.sharded_checkpoint import ShardedCheckpoint, save_sharded
from esr_trainer.sharded_towers import ShardedRanker, place
from esr_trainer.system import ranker_of, system_of
from esr_trainer.training import Played, Trainer, at_first_step, place_of, read_catalogue, resume, valued
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

    def save(self, run: Path) -> Path:
        """Write a checkpoint of this moment, each process its rows; keep the last and the best."""
        directory = save_sharded(run, self.description, self.policy, self.optimizer, self.state, self.grounds.ranker)
        self.policy.ranks.told(lambda: keep_last_and_best(run, self.criterion))
        return directory


@dataclass(frozen=True)
class SharedInWorld(InWorld):
    """A run that interacts with a world, shared out."""

    sharding: str
    ranks: Ranks

    def begin(self) -> Learner:
        """With the LSR's own file, or with the one that the first process makes."""
        ranker = self.given or self.ranks.told(lambda: ranker_of(self.config, self.world))
        system = system_of(self.config, self.world, ranker)
        return valued(new_sharded_trainer(self.config, self.world, system, self.sharding, self.ranks))

    def go_on(self, checkpoint: Checkpoint) -> Learner:
        """With the LSR that it had, on as many processes as there are now."""
        sharded = ShardedCheckpoint(checkpoint.directory, self.sharding, self.ranks)
        return resume(self.config, self.world, sharded, ShardedTrainer)


def new_sharded_trainer(
    config: TrainConfig, world: World, system: System, sharding: str, ranks: Ranks
) -> ShardedTrainer:
    """A run at its first step: tables drawn from the seed as one process would, nothing valued yet."""
    contexts, items = read_catalogue(config, world)
    places = place(contexts, items, config, sharding, ranks)
    return at_first_step(ShardedTrainer, config, world, system, ShardedRanker(contexts, items, config, places, ranks))
