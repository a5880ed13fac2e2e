"""The online training loop: context, logits, candidates, slate, reward, log-probability, step, checkpoint.

Axes: R runs side by side, B batch, M experts, N items, L slots.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

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
from esr_trainer.config import GROUP, V_FAMILY, Resume, TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.features import Features, id_features, read_features
from esr_trainer.interaction import Round, interact, side_by_side
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.learning_rate import learning_rate
from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import System, optimal_value, popularity_value, replay, uniform_value
from esr_trainer.slots import SLOT_WEIGHTS
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


def system_of(config: TrainConfig) -> System:
    """The LSR, K and slot weights of the settings."""
    slot_weights = SLOT_WEIGHTS[config.slot_weights](config.slate).to(config.device)
    return System(LATE_STAGE_RANKERS[config.lsr], config.candidates, slot_weights)


def greedy_values(world: World, system: System, policy: EarlyStageRanker) -> torch.Tensor:
    """The expected weighted reward of every context under the greedy policy, (C,)."""
    with torch.no_grad():
        return replay(world, system, lambda contexts: greedy_candidates(policy(contexts), system.num_candidates))


@dataclass
class Trainer:
    """A run in progress: the ESR, its optimizer, the only random generator, and how far it has come."""

    config: TrainConfig
    world: World
    policy: EarlyStageRanker
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    baseline: ContextBaseline
    step: int
    metrics: dict[str, float]
    """Policy value at `step`, and the values it is read against."""
    valued_step: int = -1
    """The last step that was evaluated."""

    @cached_property
    def system(self) -> System:
        """The LSR, K and slot weights of the settings."""
        return system_of(self.config)

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
        """The contexts of a step, (B,)."""
        group = GROUP if self.config.variance_reduction == "grpo" else 1
        shape, device = (self.config.batch // group,), self.generator.device
        contexts = torch.randint(self.world.num_contexts, shape, generator=self.generator, device=device)
        return contexts.repeat_interleave(group)

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
                ranker = LATE_STAGE_RANKERS[self.config.lsr]
                propensity = ranker.propensities(self.world.scores(contexts, round_.candidates), round_.positions)
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
        )
        keep_last_and_best(run)
        return directory


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
    first = trainers[0]
    config, step = first.config, first.step + 1
    own_contexts = [trainer.draw_contexts() for trainer in trainers]
    logits = logits_side_by_side([trainer.policy for trainer in trainers], own_contexts)  # (R * B, M, N)
    own_logits = logits.chunk(len(trainers))
    round_ = side_by_side(
        [
            interact(trainer.world, trainer.system, contexts, own, trainer.generator)
            for trainer, contexts, own in zip(trainers, own_contexts, own_logits, strict=True)
        ]
    )

    def read_baselines(contexts: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        parts = zip(trainers, contexts.chunk(len(trainers)), reward.chunk(len(trainers)), strict=True)
        return torch.cat([trainer.baseline.read_and_update(*part) for trainer, *part in parts])

    weighted = first.weighted_log_prob(torch.cat(own_contexts), logits, round_, read_baselines)  # (R * B, L)
    losses = -(weighted @ first.system.slot_weights).view(len(trainers), -1).mean(dim=1)
    for trainer, loss in zip(trainers, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            message = f"step {step}: loss of estimator {config.estimator} is {loss}"
            raise NonFiniteLossError(message, trainer.config.seed)
    optimizer.zero_grad()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    norms = [gradient_norm(trainer.policy) for trainer in trainers]
    for trainer, norm in zip(trainers, norms, strict=True):
        if not math.isfinite(norm):
            message = f"step {step}: gradient of estimator {config.estimator} has norm {norm}"
            raise NonFiniteLossError(message, trainer.config.seed)
    optimizer.step()
    for trainer, loss, norm, own in zip(trainers, losses.tolist(), norms, own_logits, strict=True):
        trainer.step = step
        if trainer.evaluation_is_due:
            trainer.metrics |= step_metrics(loss, norm, own)


def gradient_norm(policy: EarlyStageRanker) -> float:
    """Euclidean norm of the gradient over all tables."""
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def step_metrics(loss: float, norm: float, logits: torch.Tensor) -> dict[str, float]:
    """What a step says of itself; see METRICS.

    The effective number of items of an expert in a context is exp of its softmax's entropy: N when the policy is
    uniform, 1 when one item takes everything.
    """
    log_softmax = logits.detach().log_softmax(dim=2)
    return {
        "loss": loss,
        "gradient_norm": norm,
        "effective_items": float((-(log_softmax.exp() * log_softmax).sum(dim=2)).exp().mean()),
    }


def read_catalogue(config: TrainConfig, world: World) -> tuple[Features, Features]:
    """The contexts' and the items' ids and features."""
    return (
        read_features(world.context_ids, config.context_features)
        if config.context_features
        else id_features(world.context_ids),
        read_features(world.item_ids, config.item_features) if config.item_features else id_features(world.item_ids),
    )


def build_optimizer(config: TrainConfig, world: World, policy: EarlyStageRanker) -> torch.optim.Optimizer:
    """The optimizer of the settings, its learning rate scaled to the LSR if they say so."""
    rate = learning_rate(config, world, system_of(config))
    return OPTIMIZERS[config.optimizer](policy.parameters(), lr=rate)


def new_trainer(config: TrainConfig, world: World, contexts: Features, items: Features) -> Trainer:
    """A run at its first step: tables drawn from the seed, nothing valued yet."""
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy = build_policy(config, contexts, items).to(config.device)
    policy.initialise(config.init_std, generator)
    optimizer = build_optimizer(config, world, policy)
    baseline = ContextBaseline.new(world.num_contexts, config.slate, world.device)
    return Trainer(config, world, policy, optimizer, generator, baseline, 0, {})


def start(config: TrainConfig, world: World) -> Trainer:
    """A new run, and the values that its policy value is read against."""
    trainer = new_trainer(config, world, *read_catalogue(config, world))
    system = system_of(config)
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
    optimizer = build_optimizer(config, world, policy)
    load_optimizer_state(optimizer, policy, checkpoint.optimizer_state())
    generator = torch.Generator(config.device)
    state = checkpoint.state()
    generator.set_state(state["generator"])
    baseline = ContextBaseline(*(state[name].to(config.device) for name in ("baseline_mean", "baseline_visits")))
    step, metrics = description.step, dict(description.metrics)
    return Trainer(config, world, policy, optimizer, generator, baseline, step, metrics, valued_step=step)


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


def settle(config: TrainConfig) -> tuple[TrainConfig, World]:
    """Open the world; give the settings with its name and with whole paths.

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
    world = open_world(config.environment, config.data, config.world_seed)
    if config.candidates > world.num_items:
        raise UsageError(f"candidates ({config.candidates}) exceeds the data's {world.num_items} items")
    paths = {
        name: path.resolve()
        for name in ("data", "context_features", "item_features")
        if (path := getattr(config, name)) is not None
    }
    return config.model_copy(update={"environment": world.environment, **paths}), world.to(config.device)


def take_up(config: TrainConfig, world: World, out: Path | None, resume_from: Resume) -> tuple[Trainer, Path]:
    """Start a run or take one up again; arguments as for `prepare`, the settings from `settle`."""
    if resume_from == "auto" and out is not None and holds_run(out):
        enter_run(out, config, world.fingerprint)
        return resume(config, world, Checkpoint(out)) if checkpoints(out) else start(config, world), out
    if isinstance(resume_from, Path):
        trainer = resume(config, world, open_branch(resume_from, config, world.fingerprint))
    else:
        trainer = start(config, world)
    return trainer, make_run(out, config, world.fingerprint)
