"""The online training loop: context, logits, candidates, slate, reward, log-probability, step.

Axes: R runs side by side, B batch, M experts, N items, L slots.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import torch

from esr_trainer.checkpoint import Checkpoint, Grounds, build_policy
from esr_trainer.command_line import UsageError
from esr_trainer.config import GROUP, SUMS_TO_K, V_FAMILY, TrainConfig
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.features import Features, id_features, read_features
from esr_trainer.hashed_text import HashedText
from esr_trainer.interaction import Round, interact, side_by_side
from esr_trainer.learner import Drawn, Learner
from esr_trainer.learning_rate import learning_rate
from esr_trainer.normalisers import entropy
from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import System, optimal_value, popularity_value, replay, uniform_value
from esr_trainer.shards import Logits, together
from esr_trainer.system import system_of
from esr_trainer.towers import EarlyStageRanker, logits_side_by_side
from esr_trainer.variance_reduction import GRPO_SHIFT, ContextBaseline, control_variate, group_normalised
from esr_trainer.vocabularies import EncodedText, encoded_text
from esr_trainer.world import Catalogue, World

ReadBaseline = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Contexts (B,) and rewards (B, L) -> the baseline before these rewards, (B, L)."""


def greedy_values(world: World, system: System, policy: EarlyStageRanker) -> torch.Tensor:
    """The expected weighted reward of every context under the greedy policy, (C,)."""
    with torch.no_grad():
        return replay(world, system, lambda contexts: greedy_candidates(policy(contexts), system.num_candidates))


@dataclass(kw_only=True)
class Trainer(Learner):
    """A run that interacts with a world; `metrics` holds its policy value, and the values it is read against."""

    world: World
    system: System
    baseline: ContextBaseline

    @classmethod
    def draw_losses(cls, learners: Sequence[Self]) -> Drawn:
        """Each run plays a round."""
        played = cls.play(learners)
        return Drawn(losses_of(learners, played), played.logits, played.place.log_weight)

    @classmethod
    def play(cls, learners: Sequence[Self]) -> "Played":
        """The rounds of R runs, over the whole catalogue."""
        return play(learners)

    def value(self) -> dict[str, float]:
        """The policy value on all contexts."""
        return {self.criterion: float(greedy_values(self.world, self.system, self.policy).mean())}

    @property
    def criterion(self) -> str:
        """The policy value."""
        return "policy_value"

    @property
    def learned_from(self) -> str:
        """The world."""
        return self.world.description

    @property
    def grounds(self) -> Grounds:
        """The world and the LSR."""
        return Grounds(self.world.fingerprint, self.system.ranker_file)

    @property
    def own_state(self) -> Mapping[str, torch.Tensor]:
        """The baseline."""
        return self.baseline.tensors()

    def load_own_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """The baseline."""
        kept = (state[name].to(self.config.device) for name in ("baseline_mean", "baseline_visits"))
        self.baseline = ContextBaseline(*kept)

    def draw_contexts(self) -> torch.Tensor:
        """A batch of contexts, uniformly with replacement, (B,); GRPO's come in groups."""
        group = GROUP if self.config.variance_reduction == "grpo" else 1
        shape, device = (self.config.batch // group,), self.generator.device
        contexts = torch.randint(self.world.num_contexts, shape, generator=self.generator, device=device)
        return contexts[:, None].expand(-1, group).flatten()

    def weighted_log_prob(
        self,
        contexts: torch.Tensor,
        logits: Logits,
        round_: Round,
        read_baseline: ReadBaseline,
        place: "Place | None" = None,
    ) -> torch.Tensor:
        """Log-probability times reward, with the settings' variance reduction: (B,), (B, M, N) -> (B, L)."""
        estimator, reward = ESTIMATORS[self.config.estimator], round_.reward
        slate, candidates, log_weight = place or place_of(round_)
        log_prob = estimator(logits, slate, candidates, log_weight)
        match self.config.variance_reduction:
            case "baseline":
                return (reward - read_baseline(contexts, reward)) * log_prob
            case "grpo":
                shift = 0.0 if self.config.estimator in V_FAMILY else GRPO_SHIFT
                return (group_normalised(reward) + shift) * log_prob
            case "control-variate":
                baseline = read_baseline(contexts, reward)
                of_candidates = estimator(logits, candidates, candidates, log_weight)
                scores = self.system.scores(contexts, round_.candidates)
                propensity = self.system.ranker.propensities(scores, round_.positions)
                if self.config.estimator in SUMS_TO_K:
                    propensity = propensity - 1 / self.config.candidates
                return reward * log_prob - control_variate(baseline, log_prob, of_candidates, propensity)
            case _:
                return reward * log_prob


class Place(NamedTuple):
    """Where a round's items are among the columns of its logits."""

    slate: torch.Tensor
    """(R * B, L)."""
    candidates: torch.Tensor
    """(R * B, K)."""
    log_weight: torch.Tensor | None
    """log of how many items a column stands for, (R * B, N); None where each is one item."""


def place_of(round_: Round) -> Place:
    """Where the items are whose columns are the catalogue."""
    return Place(round_.slate, round_.candidates, None)


class Played(NamedTuple):
    """A round of R runs side by side, run by run."""

    contexts: torch.Tensor
    """(R * B,)."""
    logits: Logits
    """(R * B, M, N)."""
    round_: Round
    """Of R * B contexts."""
    place: Place


def play(trainers: Sequence[Trainer]) -> Played:
    """Each run draws its contexts and plays a round with them."""
    own_contexts = [trainer.draw_contexts() for trainer in trainers]
    logits = logits_side_by_side([trainer.policy for trainer in trainers], own_contexts)
    rounds = [
        interact(trainer.world, trainer.system, contexts, own, trainer.generator)
        for trainer, contexts, own in zip(trainers, own_contexts, logits.chunk(len(trainers)), strict=True)
    ]
    round_ = side_by_side(rounds)
    return Played(torch.cat(own_contexts), logits, round_, place_of(round_))


def played_together(rounds: Sequence[Played]) -> Played:
    """The rounds of several runs as one, run by run."""
    contexts, logits, played, places = zip(*rounds, strict=True)
    slates, candidates, log_weights = zip(*places, strict=True)
    log_weight = None if log_weights[0] is None else torch.cat(log_weights)
    place = Place(torch.cat(slates), torch.cat(candidates), log_weight)
    return Played(torch.cat(contexts), together(logits), side_by_side(played), place)


def losses_of(trainers: Sequence[Trainer], played: Played) -> torch.Tensor:
    """Each run's loss, (R,): -mean_b sum_l w_l r_bl log p_bl, less the entropy bonus."""
    first, (contexts, logits, round_, place) = trainers[0], played

    def read_baselines(contexts: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        parts = zip(trainers, contexts.chunk(len(trainers)), reward.chunk(len(trainers)), strict=True)
        return torch.cat([trainer.baseline.read_and_update(*part) for trainer, *part in parts])

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.view(len(trainers), -1).mean(dim=1)

    weights, bonus = first.system.slot_weights, first.config.entropy
    gain = mean(first.weighted_log_prob(contexts, logits, round_, read_baselines, place) @ weights)
    if bonus:
        gain = gain + bonus * mean(round_.reward.abs() @ weights) * mean(entropy(logits, place.log_weight).mean(dim=1))
    return -gain


def read_catalogue(config: TrainConfig, world: Catalogue) -> tuple[Features, Features]:
    """The contexts' and the items' ids and features.

    Raises:
        UsageError: a file of features cannot be used, or a text column is in none.
    """
    hashed = HashedText(buckets=config.text_buckets)
    read_text = encoded_text if config.text_encoder else lambda texts: hashed
    contexts, items = (
        encoded(read_features(ids, path, config.text, read_text), config.text_encoder) if path else id_features(ids)
        for ids, path in ((world.context_ids, config.context_features), (world.item_ids, config.item_features))
    )
    if unknown := set(config.text).difference(contexts.bags, items.bags):
        raise UsageError(f"text ({', '.join(sorted(unknown))}): no table of features has any text in such a column")
    if config.text_encoder and not contexts.encoded and not items.encoded:
        raise UsageError(f"text_encoder ({config.text_encoder}): no table of features has text; name columns by --text")
    return contexts, items


def encoded(features: Features, name: str | None) -> Features:
    """The features with an encoder's vectors of what it is to read."""
    if name is None:
        return features
    from esr_trainer.text_encoder import encode

    texts = {feature: one.texts for feature, one in features.vocabularies.items() if isinstance(one, EncodedText)}
    return features._replace(encoded={feature: encode(one, name) for feature, one in texts.items()})


def build_optimizer(
    kind: type[Trainer], config: TrainConfig, world: World, system: System, policy: EarlyStageRanker
) -> torch.optim.Optimizer:
    """The optimizer of the settings, its learning rate scaled to the LSR if they say so."""
    return kind.optimizers[config.optimizer](policy.parameters(), lr=learning_rate(config, world, system))


Kind = TypeVar("Kind", bound=Trainer)


def new_trainer(
    config: TrainConfig,
    world: World,
    system: System,
    contexts: Features,
    items: Features,
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """A run at its first step: tables drawn from the seed, nothing valued yet."""
    return at_first_step(kind, config, world, system, build_policy(config, contexts, items))


def at_first_step(
    kind: type[Kind], config: TrainConfig, world: World, system: System, policy: EarlyStageRanker
) -> Kind:
    """The run of a policy whose tables are drawn now."""
    trainer = with_policy(kind, config, world, system, policy)
    trainer.policy.initialise(config.init_std, trainer.generator)
    return trainer


def with_policy(kind: type[Kind], config: TrainConfig, world: World, system: System, policy: EarlyStageRanker) -> Kind:
    """The run of a policy as it is, before its first step."""
    policy = policy.to(config.device)
    return kind(
        config=config,
        world=world,
        system=system,
        policy=policy,
        optimizer=build_optimizer(kind, config, world, system, policy),
        generator=torch.Generator(config.device).manual_seed(config.seed),
        baseline=ContextBaseline.new(world.num_contexts, config.slate, world.device),
    )


def references(world: World, system: System) -> dict[str, float]:
    """What a policy value is read against."""
    return {
        "uniform_policy_value": uniform_value(world, system),
        "popularity_policy_value": popularity_value(world, system),
        "optimal_policy_value": optimal_value(world, system),
    }


def start(config: TrainConfig, world: World, system: System, kind: type[Trainer] = Trainer) -> Trainer:
    """A new run, and the values that its policy value is read against."""
    return valued(new_trainer(config, world, system, *read_catalogue(config, world), kind))


def valued(trainer: Kind) -> Kind:
    """A new run with its first value, and the values that this is read against."""
    trainer.metrics |= references(trainer.world, trainer.system)
    trainer.evaluate()
    trainer.metrics["initial_policy_value"] = trainer.metrics["policy_value"]
    return trainer


def resume(config: TrainConfig, world: World, checkpoint: Checkpoint, kind: type[Trainer] = Trainer) -> Trainer:
    """Go on from a checkpoint, bit for bit as if the run had never stopped."""
    system = system_of(config, world, checkpoint.ranker())
    return with_policy(kind, config, world, system, checkpoint.policy()).go_on_from(checkpoint)
