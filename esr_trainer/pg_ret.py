"""PG-Ret: a retriever that is there is adapted to a goal of its own; its items, and so its index, stay as they are.

A binary policy says yes or no to single pairs: pi(1 | x, a) = sigmoid(f(x, a)), f the similarity over the temperature:
of several experts the highest, since an item is retrieved if any of them takes it; `max` has an answer for items that
none of them takes yet, which are those to be found, where "the expert that owns it" has none.
Pairs come from the current policy's top, from an exploration retriever and from feedback; a relevance oracle decides
what a yes earns, a no loses as much, and only the context tower learns ("Adapting retrieval models to task-specific
goals using reinforcement learning").

Axes: R runs side by side, B batch, C contexts, M experts, N items, K candidates, T items of a top, J pairs of a
context, F impressions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from esr_trainer.checkpoint import Checkpoint, Grounds
from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.learner import OPTIMIZERS, Drawn, Learner
from esr_trainer.logged_batches import Log
from esr_trainer.normalisers import gather_items
from esr_trainer.pg_ret_rewards import Judgement, Reward
from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import CHUNK, System
from esr_trainer.relevance_oracles import RelevanceOracle
from esr_trainer.towers import EarlyStageRanker, logits_side_by_side
from esr_trainer.training import greedy_values, references
from esr_trainer.world import World


def binary_loss(logits: Tensor, reward: Tensor, generator: torch.Generator) -> Tensor:
    """-R log pi(action) of a drawn yes or no: R = R_b for a yes, -R_b for a no.

    In expectation its gradient is that of -E[R] = -R_b (2 sigmoid(f) - 1).

    Args:
        logits: f, any shape.
        reward: R_b, of the same shape.
        generator: the source of the actions.

    Returns:
        The same shape.
    """
    drawn = torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
    sign = torch.where(drawn < logits.detach().sigmoid(), 1.0, -1.0)
    return -(sign * reward) * logsigmoid(sign * logits)


class Shown(NamedTuple):
    """Feedback, context by context."""

    items: Tensor
    """(F,), the first context's first."""
    starts: Tensor
    """Where each context's begin, (C,)."""
    counts: Tensor
    """How many each context has, (C,)."""

    def draw(self, contexts: Tensor, uniform: Tensor, instead: Tensor) -> Tensor:
        """Impressions of contexts, (B,), by numbers in [0, 1), (B, J); `instead`, (B, J), where a context has none."""
        counts = self.counts[contexts][:, None]
        rows = self.starts[contexts][:, None] + (uniform * counts).long()
        return torch.where(counts > 0, self.items[rows.clamp(max=len(self.items) - 1)], instead)


def by_context(log: Log) -> Shown:
    """The impressions of a log, context by context."""
    contexts, items = log.impressions.contexts, log.impressions.items
    counts = contexts.bincount(minlength=len(log.context_ids))
    return Shown(items[contexts.argsort(stable=True)], counts.cumsum(0) - counts, counts)


class AdaptingGround(NamedTuple):
    """What a run stands on; several seeds share it."""

    world: World
    """Where the policy value is known."""
    system: System
    oracle: RelevanceOracle
    reward: Reward
    explored: Tensor | None
    """The --init run's own top K, (C, K); None to explore anything."""
    produced: Tensor
    """Production's top, (C, T)."""
    feedback: Shown | None
    fingerprint: str
    """SHA-256 of the runs that it adapts and is compared with."""
    log_fingerprint: str | None


@torch.no_grad()
def top_of(policy: EarlyStageRanker, world: World, count: int) -> Tensor:
    """The greedy top of every context, (C, count)."""
    contexts = torch.arange(world.num_contexts)
    return torch.cat([greedy_candidates(policy(rows), count) for rows in torch.split(contexts, CHUNK)])


def fingerprint_of(init: Checkpoint, production: Checkpoint) -> str:
    """SHA-256 of both runs' tables."""
    return hashlib.sha256(f"{init.fingerprint} {production.fingerprint}".encode()).hexdigest()


@dataclass(kw_only=True)
class AdaptingTrainer(Learner):
    """A run that adapts another's context tower."""

    ground: AdaptingGround

    @classmethod
    def draw_losses(cls, learners: Sequence[Self]) -> Drawn:
        """Each run draws contexts and pairs, and decides on them."""
        own_contexts = [learner.draw_contexts() for learner in learners]
        logits = logits_side_by_side([learner.policy for learner in learners], own_contexts)
        parts = zip(learners, own_contexts, logits.chunk(len(learners)), strict=True)
        return Drawn(torch.stack([learner.loss(contexts, own) for learner, contexts, own in parts]), logits)

    def draw_contexts(self) -> Tensor:
        """A batch of contexts, uniformly with replacement, (B,)."""
        return torch.randint(self.ground.world.num_contexts, (self.config.batch,), generator=self.generator)

    def loss(self, contexts: Tensor, logits: Tensor) -> Tensor:
        """The mean over pairs: (B,), (B, M, N) -> ()."""
        top = greedy_candidates(logits.detach(), self.config.reward_top)
        items = self.draw_items(contexts, top)
        relevance = self.ground.oracle.relevance(contexts, items)
        judgement = Judgement(
            relevance=relevance.nan_to_num(),
            is_current=is_in(items, top),
            is_produced=is_in(items, self.ground.produced[contexts]),
        )
        reward = self.ground.reward(*judgement).masked_fill(relevance.isnan(), 0.0)  # what nobody knows earns nothing
        return binary_loss(similarities(logits, items), reward, self.generator).mean()

    def draw_items(self, contexts: Tensor, top: Tensor) -> Tensor:
        """The pairs of contexts, (B,), whose current top is (B, T): (B, J)."""
        ground, shape = self.ground, (len(contexts), self.config.pairs)

        def uniform() -> Tensor:
            return torch.rand(shape, generator=self.generator)

        which, place = uniform(), uniform()
        source = ground.explored[contexts] if ground.explored is not None else None
        current = top.gather(1, rows_of(place, top.shape[1]))
        explored = (
            rows_of(place, ground.world.num_items)
            if source is None
            else source.gather(1, rows_of(place, source.shape[1]))
        )
        shown = ground.feedback.draw(contexts, place, explored) if ground.feedback is not None else explored
        told = self.config.share_current + self.config.share_explored
        return torch.where(which < self.config.share_current, current, torch.where(which < told, explored, shown))

    def value(self) -> dict[str, float]:
        """The policy value on all contexts."""
        return {self.criterion: float(greedy_values(self.ground.world, self.ground.system, self.policy).mean())}

    @property
    def criterion(self) -> str:
        """The policy value."""
        return "policy_value"

    @property
    def learned_from(self) -> str:
        """The world, and who says what is relevant there."""
        return f"{self.ground.world.description}; relevant by {self.config.relevance.oracle}"

    @property
    def grounds(self) -> Grounds:
        """The world, the LSR, the feedback and the runs that it began with."""
        ground = self.ground
        return Grounds(ground.world.fingerprint, ground.system.ranker_file, ground.log_fingerprint, ground.fingerprint)

    @property
    def own_state(self) -> Mapping[str, Tensor]:
        """Nothing: what it is compared with does not change."""
        return {}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


def similarities(logits: Tensor, items: Tensor) -> Tensor:
    """f of pairs, the highest of the experts': (B, M, N), (B, J) -> (B, J)."""
    highest: Tensor = gather_items(logits, items).max(dim=1).values
    return highest


def rows_of(uniform: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) as rows below a count."""
    return (uniform * count).long().clamp(max=count - 1)


def is_in(items: Tensor, lists: Tensor) -> Tensor:
    """Which items are in their context's list: (B, J), (B, T) -> (B, J) bool."""
    return (items[:, :, None] == lists[:, None]).any(dim=2)


def with_policy(config: TrainConfig, ground: AdaptingGround, policy: EarlyStageRanker) -> AdaptingTrainer:
    """The run of a policy before its first step, the item tower out of its optimizer's reach."""
    policy.item_tower.requires_grad_(False)
    optimizer = OPTIMIZERS[config.optimizer](policy.learned().values(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    return AdaptingTrainer(config=config, ground=ground, policy=policy, optimizer=optimizer, generator=generator)


def start_adapting(config: TrainConfig, ground: AdaptingGround, init: Checkpoint) -> AdaptingTrainer:
    """A new run with the tables of another, and the values that its policy value is read against."""
    learner = with_policy(config, ground, init.policy())
    learner.metrics |= references(ground.world, ground.system)
    learner.evaluate()
    learner.metrics["initial_policy_value"] = learner.metrics["policy_value"]
    return learner


def resume_adapting(config: TrainConfig, ground: AdaptingGround, checkpoint: Checkpoint) -> AdaptingTrainer:
    """Go on from a checkpoint, bit for bit as if the run had never stopped."""
    return with_policy(config, ground, checkpoint.policy()).go_on_from(checkpoint)


SHAPE = (
    "experts",
    "embedding_dim",
    "temperature",
    "context_features",
    "item_features",
    "text",
    "text_buckets",
    "text_encoder",
)
"""Settings of the tables, which are the --init run's."""

WORLD = ("environment", "data", "world_seed", "contexts", "items")
"""Settings of the world, which is the --init run's where none is named."""


def inherited(config: TrainConfig, init: Checkpoint) -> TrainConfig:
    """The settings with what the run that is adapted decides.

    Raises:
        UsageError: other tables are asked for, an expert owns nothing of the top, or no world is known.
    """
    theirs = init.config
    for name in SHAPE:
        own = getattr(config, name)
        if own not in (TrainConfig.model_fields[name].default, getattr(theirs, name)):
            raise UsageError(f"{name} ({own}): the --init run has {getattr(theirs, name)}, and its tables stay")
    if theirs.experts > config.reward_top:
        raise UsageError(
            f"reward_top ({config.reward_top}): the --init run has {theirs.experts} experts, and each must own an item "
            "of the top"
        )
    has_own_world = config.data is not None or config.environment is not None
    if not has_own_world and not theirs.values_in_a_world:
        raise UsageError(f"init ({config.init}) was trained from a log alone: name a world with --data")
    names = SHAPE if has_own_world else (*SHAPE, *WORLD)
    return config.model_copy(update={name: getattr(theirs, name) for name in names})


def check_same_ids(name: str, checkpoint: Checkpoint, world: World) -> EarlyStageRanker:
    """The policy of a run that is of this world's ids.

    Raises:
        UsageError: it is of others.
    """
    policy = checkpoint.policy()
    of_run = (policy.context_tower.features.ids, policy.item_tower.features.ids)
    for what, found, wanted in zip(("contexts", "items"), of_run, (world.context_ids, world.item_ids), strict=True):
        if tuple(found) != tuple(wanted):
            raise UsageError(f"{name} ({checkpoint.directory}): its {what} are not the world's")
    return policy
