"""Learning from a log: a batch of logged impressions, their loss, a step; valued on impressions that were held out.

Axes: R runs side by side, B batch, C contexts, M experts, N items, K candidates, L slots, H held-out impressions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import polars as pl
import torch
from torch import Tensor

from esr_trainer.checkpoint import Checkpoint, Grounds, build_policy
from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.features import Features
from esr_trainer.learned_ranker import fit_to_feedback
from esr_trainer.learner import OPTIMIZERS, Drawn, Learner
from esr_trainer.logged_batches import Log, Parts
from esr_trainer.logged_interactions import weights_of
from esr_trainer.logged_losses import (
    LOGGED_LOSSES,
    CurrentPolicy,
    LoggedBatch,
    Negatives,
    SecondStage,
    log_draw_probability,
)
from esr_trainer.normalisers import entropy
from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import CHUNK, System
from esr_trainer.ranker_files import RankerFile
from esr_trainer.reward_model import Interactions, weighted_mean
from esr_trainer.system import system_of
from esr_trainer.towers import EarlyStageRanker, logits_side_by_side
from esr_trainer.training import greedy_values, read_catalogue, references
from esr_trainer.world import World, check_size

WITHOUT_PROPENSITIES = ("ce", "infonce")
"""Losses that know nothing of what the logging system preferred."""

NORMAL_95 = 1.96
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""


class Ground(NamedTuple):
    """What a run that learns from a log stands on; several seeds share it."""

    log: Log
    parts: Parts
    """Learned from and held out."""
    system: System
    world: World | None
    """Where the policy value is known."""
    scores: Tensor | None
    """The LSR's score of every item in every context, (C, N); for `two-stage-ips` alone."""
    log_shares: Tensor | None = None
    """log of each item's share of what is learned from, (N,); for `infonce` alone."""


class HeldOut(NamedTuple):
    """What a policy does for some held-out impressions, (H,) each."""

    log_prob: Tensor
    """log p(a | x) of the item shown."""
    is_candidate: Tensor
    """1 if the item shown is among the greedy candidates, else 0."""
    importance: Tensor
    """Slot-weighted chance that greedy ESR and LSR show the item, over its propensity."""


@dataclass(kw_only=True)
class LogTrainer(Learner):
    """A run that learns from a log."""

    ground: Ground

    @classmethod
    def draw_losses(cls, learners: Sequence[Self]) -> Drawn:
        """Each run draws a batch of its log, uniformly with replacement."""
        batches = [learner.draw_batch() for learner in learners]
        logits = logits_side_by_side([learner.policy for learner in learners], [batch.contexts for batch in batches])
        parts = zip(learners, batches, logits.chunk(len(learners)), strict=True)
        return Drawn(torch.stack([learner.loss(batch, own) for learner, batch, own in parts]), logits)

    def draw_batch(self) -> LoggedBatch:
        """Impressions that are learned from."""
        learned = self.ground.parts.learned
        return learned.take(torch.randint(len(learned.rewards), (self.config.batch,), generator=self.generator))

    def loss(self, batch: LoggedBatch, logits: Tensor) -> Tensor:
        """The mean of LOGGED_LOSSES, less the entropy bonus: (B, M, N) -> ()."""
        config, stage, negatives = self.config, None, None
        if self.ground.scores is not None:
            stage = SecondStage(
                scores=self.ground.scores[batch.contexts] / config.lsr_temperature,
                alpha=config.alpha,
                num_sets=config.sets,
                set_size=config.set_size,
                temperature=config.set_temperature,
                generator=self.generator,
            )
        if self.ground.log_shares is not None:
            drawn = torch.randint(logits.shape[2], (config.random_negatives,), generator=self.generator)
            negatives = Negatives(drawn, self.ground.log_shares)
        policy = CurrentPolicy(logits, config.candidates, stage, negatives)
        loss = LOGGED_LOSSES[config.estimator](policy, batch).mean()
        if config.entropy:
            loss = loss - config.entropy * batch.rewards.abs().mean() * entropy(logits).mean()
        return loss

    def value(self) -> dict[str, float]:
        """On the held-out impressions, and in the world if there is one."""
        ground = self.ground
        found = held_out_metrics(ground, self.policy)
        if ground.world is not None:
            found["policy_value"] = float(greedy_values(ground.world, ground.system, self.policy).mean())
        return found

    @property
    def criterion(self) -> str:
        """The policy value if there is a world, else the held-out recall."""
        return "held_out_recall" if self.ground.world is None else "policy_value"

    @property
    def learned_from(self) -> str:
        """The log, and the world if there is one."""
        world = self.ground.world
        return self.ground.log.description + (f", valued in {world.description}" if world else "")

    @property
    def grounds(self) -> Grounds:
        """The log, the LSR, and the world if there is one."""
        log, world = self.ground.log.fingerprint, self.ground.world
        return Grounds(world.fingerprint if world else log, self.ground.system.ranker_file, log)

    @property
    def own_state(self) -> Mapping[str, Tensor]:
        """Nothing: the log does not change."""
        return {}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


def new_log_trainer(
    config: TrainConfig, ground: Ground, features: tuple[Features, Features] | None = None
) -> LogTrainer:
    """A run at its first step: tables drawn from the seed, nothing valued yet; features where no file holds them."""
    policy = build_policy(config, *(features or read_catalogue(config, ground.log)))
    learner = with_policy(config, ground, policy)
    policy.initialise(config.init_std, learner.generator)
    return learner


def with_policy(config: TrainConfig, ground: Ground, policy: EarlyStageRanker) -> LogTrainer:
    """The run of a policy as it is, before its first step."""
    optimizer = OPTIMIZERS[config.optimizer](policy.learned().values(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    return LogTrainer(config=config, ground=ground, policy=policy, optimizer=optimizer, generator=generator)


def start_from_log(config: TrainConfig, ground: Ground) -> LogTrainer:
    """A new run, and the values that it is read against."""
    learner = new_log_trainer(config, ground)
    learner.metrics |= {"popularity_held_out_recall": popularity_recall(ground), **logged_reward(ground)}
    if ground.world is not None:
        learner.metrics |= references(ground.world, ground.system)
    learner.evaluate()
    criterion = learner.criterion
    learner.metrics |= {f"initial_{name}": learner.metrics[name] for name in {criterion, "held_out_recall"}}
    return learner


def resume_from_log(config: TrainConfig, ground: Ground, checkpoint: Checkpoint) -> LogTrainer:
    """Go on from a checkpoint, bit for bit as if the run had never stopped."""
    return with_policy(config, ground, checkpoint.policy()).go_on_from(checkpoint)


def stand_on(config: TrainConfig, log: Log, parts: Parts, world: World | None, ranker: RankerFile | None) -> Ground:
    """What runs of these settings stand on; the LSR is fitted to the log where they ask for a learned one.

    Raises:
        UsageError: the estimator needs propensities that the log has not, or the LSR's file does not fit.
    """
    if not log.has_propensities and config.estimator not in WITHOUT_PROPENSITIES:
        raise UsageError(
            f"estimator ({config.estimator}) needs propensities, which the log has not: only "
            f"{' and '.join(WITHOUT_PROPENSITIES)} do not"
        )
    if ranker is None and config.lsr == "learned":
        content = fit_to_feedback(as_interactions(parts.learned), log, config.world_seed)
        ranker = RankerFile("ranker.safetensors", content)
    system = system_of(config, log if world is None else world, ranker)
    scores = all_scores(log, system) if config.estimator == "two-stage-ips" else None
    log_shares = None
    if config.estimator == "infonce":
        log_shares = parts.learned.items.bincount(minlength=len(log.item_ids)).float().log() - math.log(
            len(parts.learned.items)
        )
    return Ground(log, parts, system, world, scores, log_shares)


def as_interactions(impressions: LoggedBatch) -> Interactions:
    """Impressions weighted by their inverse propensities."""
    weights = weights_of(pl.Series(impressions.propensities.double().numpy()))
    return Interactions(impressions.contexts, impressions.items, impressions.rewards, weights)


def all_scores(log: Log, system: System) -> Tensor:
    """The LSR's score of every item in every context, (C, N).

    Raises:
        UsageError: there are too many.
    """
    num_contexts, num_items = len(log.context_ids), len(log.item_ids)
    check_size(num_contexts, num_items)
    items = torch.arange(num_items)
    return torch.cat([system.scores(rows, items.expand(len(rows), -1)) for rows in chunks(num_contexts, 16)])


def chunks(count: int, size: int) -> tuple[Tensor, ...]:
    """The rows 0..count - 1, some at a time."""
    parts: tuple[Tensor, ...] = torch.split(torch.arange(count), size)
    return parts


def held_out_metrics(ground: Ground, policy: EarlyStageRanker) -> dict[str, float]:
    """What a policy is worth on the held-out impressions; see METRICS."""
    held_out = ground.parts.held_out
    done = HeldOut(*map(torch.cat, zip(*held_out_by_chunk(ground, policy), strict=True)))
    weights = positives(held_out)
    metrics = {
        "held_out_recall": weighted_mean(done.is_candidate, weights),
        "held_out_log_loss": weighted_mean(-done.log_prob, weights),
    }
    if not ground.log.has_propensities:
        return metrics
    values = done.importance.double() * held_out.rewards
    value, half = float(values.mean()), NORMAL_95 * float(values.std()) / math.sqrt(len(values))
    return metrics | {"ips_value": value, "ips_value_low": value - half, "ips_value_high": value + half}


@torch.no_grad()
def held_out_by_chunk(ground: Ground, policy: EarlyStageRanker) -> Iterator[HeldOut]:
    """Some impressions at a time, so that the logits of all are never held at once."""
    held_out, system = ground.parts.held_out, ground.system
    for rows in chunks(len(held_out.rewards), CHUNK):
        batch = held_out.take(rows)
        logits = policy(batch.contexts)
        candidates = greedy_candidates(logits, system.num_candidates)
        is_here = (candidates == batch.items[:, None]).float()
        # what the system would earn, were the item worth 1 / propensity and every other one nothing
        importance = system.ranker.expected_rewards(
            system.scores(batch.contexts, candidates),
            is_here / batch.propensities[:, None],
            system.num_slots,
            torch.Generator().manual_seed(0),
        )
        log_prob = log_draw_probability(CurrentPolicy(logits, system.num_candidates), batch.items)
        yield HeldOut(log_prob, is_here.sum(dim=1), importance @ system.slot_weights)


def positives(impressions: LoggedBatch) -> Tensor:
    """Rewards above 0 by their inverse propensities, capped as the log's weights are, (H,)."""
    return as_interactions(impressions).weights * impressions.rewards.clamp(min=0)


def popularity_recall(ground: Ground) -> float:
    """The held-out recall of one list for everybody: the items that earned most where it was learned from."""
    learned, held_out = ground.parts
    earned = torch.zeros(len(ground.log.item_ids)).index_add_(0, learned.items, positives(learned))
    popular = earned.topk(ground.system.num_candidates).indices
    return weighted_mean(torch.isin(held_out.items, popular), positives(held_out))


def logged_reward(ground: Ground) -> dict[str, float]:
    """What the logging system earned with the held-out impressions."""
    return {"logged_reward": float(ground.parts.held_out.rewards.double().mean())}
