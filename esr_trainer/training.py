"""The online training loop: context, logits, candidates, slate, reward, log-probability, step, checkpoint.

Axes: B batch, L slots.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from esr_trainer.checkpoint import (
    Checkpoint,
    build_policy,
    checkpoints,
    keep_last_and_best,
    load_optimizer_state,
    open_run,
    save_checkpoint,
)
from esr_trainer.command_line import UsageError
from esr_trainer.config import GROUP, SUMS_TO_K, V_FAMILY, TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.features import Features, id_features, read_features
from esr_trainer.interaction import Round, interact
from esr_trainer.metrics import MetricsLog
from esr_trainer.policy import entropy, greedy_candidates
from esr_trainer.policy_value import System, optimal_value, popularity_value, replay, uniform_value
from esr_trainer.system import ranker_of, read_ranker, system_of
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.variance_reduction import GRPO_SHIFT, ContextBaseline, control_variate, group_normalised
from esr_trainer.whole_directory import remove_unfinished
from esr_trainer.world import World

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adagrad": partial(torch.optim.Adagrad, fused=True),
}
"""One kernel updates a whole table."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is nan or infinite: a bug in an estimator, or a reward that is not finite."""


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

    @property
    def saving_is_due(self) -> bool:
        """Whether a checkpoint belongs to `step`."""
        return self.step == self.config.steps or self.step % self.config.checkpoint_every == 0

    @property
    def evaluation_is_due(self) -> bool:
        """Whether `step` is one that is evaluated; one that is saved is."""
        return self.saving_is_due or self.step % self.config.evaluate_every == 0

    def advance(self) -> None:
        """One gradient step on one batch of contexts.

        Raises:
            NonFiniteLossError: the loss or its gradient is not finite; no parameter was changed.
        """
        config, system = self.config, self.system
        group = GROUP if config.variance_reduction == "grpo" else 1
        contexts = torch.randint(self.world.num_contexts, (config.batch // group,), generator=self.generator)
        contexts = contexts[:, None].expand(-1, group).flatten()
        logits = self.policy(contexts)
        round_ = interact(self.world, system, contexts, logits, self.generator)
        loss = -(self.weighted_log_prob(contexts, logits, round_) @ system.slot_weights).mean()
        if config.entropy:
            loss = loss - config.entropy * entropy(logits).mean()
        if not math.isfinite(loss.item()):
            raise NonFiniteLossError(f"step {self.step + 1}: loss of estimator {config.estimator} is {loss.item()}")
        self.policy.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(self.policy)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"step {self.step + 1}: gradient of estimator {config.estimator} has norm {norm}")
        self.optimizer.step()
        self.step += 1
        if self.evaluation_is_due:
            self.metrics |= step_metrics(loss, norm, logits)

    def weighted_log_prob(self, contexts: torch.Tensor, logits: torch.Tensor, round_: Round) -> torch.Tensor:
        """Log-probability times reward, with the settings' variance reduction: (B,), (B, M, N) -> (B, L)."""
        estimator, reward = ESTIMATORS[self.config.estimator], round_.reward
        log_prob = estimator(logits, round_.slate, round_.candidates)
        match self.config.variance_reduction:
            case "baseline":
                return (reward - self.baseline.read_and_update(contexts, reward)) * log_prob
            case "grpo":
                shift = 0.0 if self.config.estimator in V_FAMILY else GRPO_SHIFT
                return (group_normalised(reward) + shift) * log_prob
            case "control-variate":
                baseline = self.baseline.read_and_update(contexts, reward)
                of_candidates = estimator(logits, round_.candidates, round_.candidates)
                scores = self.system.scores(contexts, round_.candidates)
                propensity = self.system.ranker.propensities(scores, round_.positions)
                if self.config.estimator in SUMS_TO_K:
                    propensity = propensity - 1 / self.config.candidates
                return reward * log_prob - control_variate(baseline, log_prob, of_candidates, propensity)
            case _:
                return reward * log_prob

    def evaluate(self) -> None:
        """Value the greedy policy on all contexts."""
        metrics = self.metrics
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


def gradient_norm(policy: EarlyStageRanker) -> float:
    """Euclidean norm of the gradient over all tables."""
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return float(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm())


def step_metrics(loss: torch.Tensor, norm: float, logits: torch.Tensor) -> dict[str, float]:
    """What a step says of itself; see METRICS.

    The effective number of items of an expert in a context is exp of its softmax's entropy.
    """
    return {
        "loss": loss.item(),
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


def new_trainer(config: TrainConfig, world: World, system: System, contexts: Features, items: Features) -> Trainer:
    """A run at its first step: tables drawn from the seed, nothing valued yet."""
    generator = torch.Generator().manual_seed(config.seed)
    policy = build_policy(config, contexts, items)
    policy.initialise(config.init_std, generator)
    optimizer = OPTIMIZERS[config.optimizer](policy.parameters(), lr=config.learning_rate)
    baseline = ContextBaseline.new(world.num_contexts, config.slate)
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
    policy = checkpoint.policy()
    optimizer = OPTIMIZERS[config.optimizer](policy.parameters(), lr=config.learning_rate)
    load_optimizer_state(optimizer, policy, checkpoint.optimizer_state())
    generator = torch.Generator()
    state = checkpoint.state()
    generator.set_state(state["generator"])
    baseline = ContextBaseline(state["baseline_mean"], state["baseline_visits"])
    system, metrics = system_of(config, world, checkpoint.ranker()), dict(description.metrics)
    return Trainer(config, world, system, policy, optimizer, generator, baseline, description.step, metrics)


def prepare(config: TrainConfig, out: Path | None) -> tuple[Trainer, Path]:
    """Check the settings against the world, then start a run or take one up again.

    Returns:
        The trainer and its run directory.

    Raises:
        UsageError: the settings, the data or the directory cannot be used; nothing was written.
    """
    for path in (config.context_features, config.item_features):
        if path is not None and not path.is_file():
            raise UsageError(f"features ({path}) is not a file")
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
    if out is not None and checkpoints(out):
        run = open_run(out, config, world.fingerprint, given)
        return resume(config, world, Checkpoint(run)), run
    ranker = given or ranker_of(config, world)
    trainer = start(config, world, system_of(config, world, ranker))
    return trainer, open_run(out, config, world.fingerprint, ranker)


def train(trainer: Trainer, run: Path, report: Callable[[Trainer], None], stop: Callable[[], bool]) -> Path:
    """Advance to the last step, evaluating and saving on the way.

    Args:
        trainer: from `prepare`.
        run: its run directory; nobody else may write there.
        report: called after every step and evaluation.
        stop: asked after every step; True saves and ends the run early.

    Returns:
        The last checkpoint's directory.

    Raises:
        NonFiniteLossError: names the step, the estimator and the last good checkpoint.
    """
    config = trainer.config
    remove_unfinished(run / "checkpoints")
    metrics = MetricsLog(run, trainer.step)
    while trainer.step < config.steps and not stop():
        try:
            trainer.advance()
        except NonFiniteLossError as error:
            metrics.close()
            last = checkpoints(run)
            raise NonFiniteLossError(f"{error}; last good checkpoint: {last[-1] if last else 'none'}") from None
        evaluated = trainer.evaluation_is_due
        if evaluated:
            trainer.evaluate()
            metrics.write(trainer.step, trainer.metrics)
        report(trainer)
        if evaluated and config.patience and trainer.metrics["evaluations_since_best"] >= config.patience:
            break
        if trainer.saving_is_due and trainer.step < config.steps:
            trainer.save(run)
    metrics.close()
    if stop():
        trainer.evaluate()
    return trainer.save(run)
