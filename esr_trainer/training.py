"""The online training loop: context, logits, candidates, slate, reward, log-probability, step, checkpoint.

Axes: R runs side by side, B batch, M experts, N items, L slots.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from esr_trainer.checkpoint import (
    Checkpoint,
    build_policy,
    checkpoints,
    enter_run,
    holds_run,
    keep_last_and_best,
    load_optimizer_state,
    make_run,
    open_branch,
    save_checkpoint,
)
from esr_trainer.command_line import UsageError
from esr_trainer.config import GROUP, SUMS_TO_K, V_FAMILY, Resume, TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.features import Features, id_features, read_features
from esr_trainer.interaction import Round, interact, side_by_side
from esr_trainer.learning_rate import learning_rate
from esr_trainer.normalisers import entropy
from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import System, optimal_value, popularity_value, replay, uniform_value
from esr_trainer.ranker_files import RankerFile
from esr_trainer.system import ranker_of, read_ranker, system_of
from esr_trainer.towers import EarlyStageRanker, logits_side_by_side
from esr_trainer.variance_reduction import GRPO_SHIFT, ContextBaseline, control_variate, group_normalised
from esr_trainer.world import World

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adagrad": partial(torch.optim.Adagrad, fused=True),
}
"""One kernel updates a whole table."""


ReadBaseline = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Contexts (B,) and rewards (B, L) -> the baseline before these rewards, (B, L)."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is nan or infinite: a bug in an estimator, or a reward that is not finite."""

    def __init__(self, message: str, seed: int) -> None:
        """Say what happened in the run of a seed."""
        super().__init__(message)
        self.seed = seed


def greedy_values(world: World, system: System, policy: EarlyStageRanker) -> torch.Tensor:
    """The expected weighted reward of every context under the greedy policy, (C,)."""
    with torch.no_grad():
        return replay(world, system, lambda contexts: greedy_candidates(policy(contexts), system.num_candidates))


@dataclass
class Trainer:
    """A run in progress: the ESR, its optimizer, the only random generator, and how far it has come."""

    config: TrainConfig
    world: World
    system: System
    policy: EarlyStageRanker
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    baseline: ContextBaseline
    step: int
    metrics: dict[str, float]
    """Policy value at `step`, and the values it is read against."""
    valued_step: int = -1
    """The last step that was evaluated."""

    @property
    def saving_is_due(self) -> bool:
        """Whether a checkpoint belongs to `step`."""
        return self.step == self.config.steps or self.step % self.config.checkpoint_every == 0

    @property
    def evaluation_is_due(self) -> bool:
        """Whether `step` is one that is evaluated; one that is saved is."""
        return self.saving_is_due or self.step % self.config.evaluate_every == 0

    def advance(self) -> None:
        """One gradient step; see `take_step`."""
        take_step([self], self.optimizer)

    def draw_contexts(self) -> torch.Tensor:
        """A batch of contexts, uniformly with replacement, (B,); GRPO's come in groups."""
        group = GROUP if self.config.variance_reduction == "grpo" else 1
        shape, device = (self.config.batch // group,), self.generator.device
        contexts = torch.randint(self.world.num_contexts, shape, generator=self.generator, device=device)
        return contexts[:, None].expand(-1, group).flatten()

    def weighted_log_prob(
        self, contexts: torch.Tensor, logits: torch.Tensor, round_: Round, read_baseline: ReadBaseline
    ) -> torch.Tensor:
        """Log-probability times reward, with the settings' variance reduction: (B,), (B, M, N) -> (B, L)."""
        estimator, reward = ESTIMATORS[self.config.estimator], round_.reward
        log_prob = estimator(logits, round_.slate, round_.candidates)
        match self.config.variance_reduction:
            case "baseline":
                return (reward - read_baseline(contexts, reward)) * log_prob
            case "grpo":
                shift = 0.0 if self.config.estimator in V_FAMILY else GRPO_SHIFT
                return (group_normalised(reward) + shift) * log_prob
            case "control-variate":
                baseline = read_baseline(contexts, reward)
                of_candidates = estimator(logits, round_.candidates, round_.candidates)
                scores = self.system.scores(contexts, round_.candidates)
                propensity = self.system.ranker.propensities(scores, round_.positions)
                if self.config.estimator in SUMS_TO_K:
                    propensity = propensity - 1 / self.config.candidates
                return reward * log_prob - control_variate(baseline, log_prob, of_candidates, propensity)
            case _:
                return reward * log_prob

    def evaluate(self) -> None:
        """Value the greedy policy on all contexts; a step that was valued already is not counted twice."""
        if self.valued_step == self.step:
            return
        self.valued_step, metrics = self.step, self.metrics
        value = float(greedy_values(self.world, self.system, self.policy).mean())
        is_best = value > metrics.get("best_policy_value", -math.inf)
        metrics["policy_value"] = value
        metrics["best_policy_value"] = value if is_best else metrics["best_policy_value"]
        metrics["evaluations_since_best"] = 0 if is_best else metrics["evaluations_since_best"] + 1

    def save(self, run: Path) -> Path:
        """Write a checkpoint of this moment; keep the last and the best."""
        directory = save_checkpoint(
            run,
            {
                "step": self.step,
                "config": self.config,
                "world": self.world.description,
                "world_fingerprint": self.world.fingerprint,
                "metrics": self.metrics,
            },
            self.policy,
            self.optimizer,
            {"generator": self.generator.get_state(), **self.baseline.tensors()},
            self.system.ranker_file,
        )
        keep_last_and_best(run)
        return directory


class Played(NamedTuple):
    """A round of R runs side by side, run by run."""

    contexts: torch.Tensor
    """(R * B,)."""
    logits: torch.Tensor
    """(R * B, M, N)."""
    round_: Round
    """Of R * B contexts."""


def take_step(trainers: Sequence[Trainer], optimizer: torch.optim.Optimizer) -> None:
    """One gradient step of each of R runs that differ by their seed alone, on one batch of contexts each.

    The rows of all batches go through the estimator and its gradient together. A row reaches no other run's tables, and
    each run draws from its own generator, so each takes the step that it would take alone.

    Args:
        trainers: R of them, at the same step.
        optimizer: of the tables of all.

    Raises:
        NonFiniteLossError: a loss or its gradient is not finite; no parameter was changed.
    """
    played = play(trainers)
    descend(trainers, optimizer, losses_of(trainers, played), played.logits)


def play(trainers: Sequence[Trainer]) -> Played:
    """Each run draws its contexts and plays a round with them."""
    own_contexts = [trainer.draw_contexts() for trainer in trainers]
    logits = logits_side_by_side([trainer.policy for trainer in trainers], own_contexts)
    rounds = [
        interact(trainer.world, trainer.system, contexts, own, trainer.generator)
        for trainer, contexts, own in zip(trainers, own_contexts, logits.chunk(len(trainers)), strict=True)
    ]
    return Played(torch.cat(own_contexts), logits, side_by_side(rounds))


def losses_of(trainers: Sequence[Trainer], played: Played) -> torch.Tensor:
    """Each run's loss, (R,): -mean_b sum_l w_l r_bl log p_bl, less the entropy bonus."""
    first, (contexts, logits, round_) = trainers[0], played

    def read_baselines(contexts: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        parts = zip(trainers, contexts.chunk(len(trainers)), reward.chunk(len(trainers)), strict=True)
        return torch.cat([trainer.baseline.read_and_update(*part) for trainer, *part in parts])

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.view(len(trainers), -1).mean(dim=1)

    weights, bonus = first.system.slot_weights, first.config.entropy
    gain = mean(first.weighted_log_prob(contexts, logits, round_, read_baselines) @ weights)
    if bonus:
        gain = gain + bonus * mean(round_.reward.abs() @ weights) * mean(entropy(logits).mean(dim=1))
    return -gain


def descend(
    trainers: Sequence[Trainer], optimizer: torch.optim.Optimizer, losses: torch.Tensor, logits: torch.Tensor
) -> None:
    """Take each run's step down its loss, (R,), that was worked out from these logits; the rest as of `take_step`."""
    estimator, step = trainers[0].config.estimator, trainers[0].step + 1
    for trainer, loss in zip(trainers, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"step {step}: loss of estimator {estimator} is {loss}", trainer.config.seed)
    optimizer.zero_grad()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    norms = [gradient_norm(trainer.policy) for trainer in trainers]
    for trainer, norm in zip(trainers, norms, strict=True):
        if not math.isfinite(norm):
            message = f"step {step}: gradient of estimator {estimator} has norm {norm}"
            raise NonFiniteLossError(message, trainer.config.seed)
    optimizer.step()
    for trainer, loss, norm, own in zip(trainers, losses.tolist(), norms, logits.chunk(len(trainers)), strict=True):
        trainer.step = step
        if trainer.evaluation_is_due:
            trainer.metrics |= step_metrics(loss, norm, own)


def gradient_norm(policy: EarlyStageRanker) -> float:
    """Euclidean norm of the gradient over all tables."""
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return float(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm())


def step_metrics(loss: float, norm: float, logits: torch.Tensor) -> dict[str, float]:
    """What a step says of itself; see METRICS.

    The effective number of items of an expert in a context is exp of its softmax's entropy.
    """
    return {
        "loss": loss,
        "gradient_norm": norm,
        "effective_items": float(entropy(logits.detach()).exp().mean()),
    }


def read_catalogue(config: TrainConfig, world: World) -> tuple[Features, Features]:
    """The contexts' and the items' ids and features."""
    return (
        read_features(world.context_ids, config.context_features)
        if config.context_features
        else id_features(world.context_ids),
        read_features(world.item_ids, config.item_features) if config.item_features else id_features(world.item_ids),
    )


def build_optimizer(
    config: TrainConfig, world: World, system: System, policy: EarlyStageRanker
) -> torch.optim.Optimizer:
    """The optimizer of the settings, its learning rate scaled to the LSR if they say so."""
    return OPTIMIZERS[config.optimizer](policy.parameters(), lr=learning_rate(config, world, system))


def new_trainer(config: TrainConfig, world: World, system: System, contexts: Features, items: Features) -> Trainer:
    """A run at its first step: tables drawn from the seed, nothing valued yet."""
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy = build_policy(config, contexts, items).to(config.device)
    policy.initialise(config.init_std, generator)
    optimizer = build_optimizer(config, world, system, policy)
    baseline = ContextBaseline.new(world.num_contexts, config.slate, world.device)
    return Trainer(config, world, system, policy, optimizer, generator, baseline, 0, {})


def start(config: TrainConfig, world: World, system: System) -> Trainer:
    """A new run, and the values that its policy value is read against."""
    trainer = new_trainer(config, world, system, *read_catalogue(config, world))
    trainer.metrics |= {
        "uniform_policy_value": uniform_value(world, system),
        "popularity_policy_value": popularity_value(world, system),
        "optimal_policy_value": optimal_value(world, system),
    }
    trainer.evaluate()
    trainer.metrics["initial_policy_value"] = trainer.metrics["policy_value"]
    return trainer


def resume(config: TrainConfig, world: World, checkpoint: Checkpoint) -> Trainer:
    """Go on from a checkpoint, bit for bit as if the run had never stopped."""
    description = checkpoint.description
    if description.step > config.steps:
        raise UsageError(f"steps ({config.steps}): the run has already done {description.step}")
    policy = checkpoint.policy().to(config.device)
    system = system_of(config, world, checkpoint.ranker())
    optimizer = build_optimizer(config, world, system, policy)
    load_optimizer_state(optimizer, policy, checkpoint.optimizer_state())
    generator = torch.Generator(config.device)
    state = checkpoint.state()
    generator.set_state(state["generator"])
    baseline = ContextBaseline(*(state[name].to(config.device) for name in ("baseline_mean", "baseline_visits")))
    step, metrics = description.step, dict(description.metrics)
    return Trainer(config, world, system, policy, optimizer, generator, baseline, step, metrics, valued_step=step)


def prepare(config: TrainConfig, out: Path | None, resume_from: Resume = "auto") -> tuple[Trainer, Path]:
    """Check the settings against the world, then start a run or take one up again.

    Args:
        config: the settings.
        out: the run directory; None for a fresh one.
        resume_from: `auto` goes on where `out` holds a run, `never` refuses that, and a path names the run or the
            checkpoint from whose state a new run goes on.

    Returns:
        The trainer and its run directory.

    Raises:
        UsageError: the settings, the data or the directory cannot be used; nothing was written.
    """
    return take_up(*settle(config), out, resume_from)


def settle(config: TrainConfig) -> tuple[TrainConfig, World, RankerFile | None]:
    """Open the world; give the settings with its name and with whole paths, and the LSR's own file if they name one.

    Raises:
        UsageError: the settings do not fit the world, or a file cannot be read.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device (cuda): this machine, or this build of torch, has none")
    for path in (config.context_features, config.item_features):
        if path is not None and not path.is_file():
            raise UsageError(f"features ({path}) is not a file")
        if path is not None and config.device != "cpu":
            raise UsageError(f"features ({path}) are looked up on the cpu alone: leave --device {config.device} out")
    if config.device != "cpu" and (config.lsr == "learned" or isinstance(config.lsr, Path)):
        raise UsageError(f"lsr ({config.lsr}) ranks on the cpu alone: leave --device {config.device} out")
    given = read_ranker(config.lsr) if isinstance(config.lsr, Path) else None
    world = open_world(config.environment, config.data, config.world_seed, config.contexts, config.items)
    if config.candidates > world.num_items:
        raise UsageError(f"candidates ({config.candidates}) exceeds the data's {world.num_items} items")
    paths = {
        name: path.resolve()
        for name in ("data", "context_features", "item_features", "lsr")
        if isinstance(path := getattr(config, name), Path)
    }
    config = config.model_copy(update={"environment": world.environment, **paths})
    return config, world.to(config.device), given


def take_up(
    config: TrainConfig, world: World, given: RankerFile | None, out: Path | None, resume_from: Resume
) -> tuple[Trainer, Path]:
    """Start a run or take one up again; arguments as for `prepare`, the first three from `settle`."""
    if resume_from == "auto" and out is not None and holds_run(out):
        enter_run(out, config, world.fingerprint, given)
        if checkpoints(out):
            return resume(config, world, Checkpoint(out)), out
        return begin(config, world, given), out
    if isinstance(resume_from, Path):
        trainer = resume(config, world, open_branch(resume_from, config, world.fingerprint, given))
    else:
        trainer = begin(config, world, given)
    return trainer, make_run(out, config, world.fingerprint, given)


def begin(config: TrainConfig, world: World, given: RankerFile | None) -> Trainer:
    """A new run with the LSR's own file, or with the one that the settings ask for."""
    return start(config, world, system_of(config, world, given or ranker_of(config, world)))
