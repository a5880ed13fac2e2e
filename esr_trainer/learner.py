"""A run in progress, whatever it learns from: its tables, its steps, its evaluations and its checkpoints.

Axes: R runs side by side, B batch, M experts, N items.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch

from esr_trainer.checkpoint import Checkpoint, Grounds, keep_last_and_best, load_optimizer_state, save_checkpoint
from esr_trainer.config import TrainConfig
from esr_trainer.normalisers import entropy
from esr_trainer.shards import Logits, of_runs
from esr_trainer.towers import EarlyStageRanker

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adagrad": partial(torch.optim.Adagrad, fused=True),
}
"""One kernel updates a whole table."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is nan or infinite: a bug in an estimator, or a reward that is not finite."""

    def __init__(self, message: str, seed: int) -> None:
        """Say what happened in the run of a seed."""
        super().__init__(message)
        self.seed = seed


class Drawn(NamedTuple):
    """What R runs descend."""

    losses: torch.Tensor
    """Each one's loss, (R,)."""
    logits: Logits
    """Those behind them, (R * B, M, N)."""
    log_weight: torch.Tensor | None = None
    """log of how many items a column stands for, (R * B, N); None where each is one item."""


@dataclass(kw_only=True)
class Learner(ABC):
    """A run in progress: the ESR, its optimizer, the only random generator, and how far it has come."""

    optimizers: ClassVar[Mapping[str, Callable[..., torch.optim.Optimizer]]] = OPTIMIZERS
    """What its gradients go to."""
    config: TrainConfig
    policy: EarlyStageRanker
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """What `step` was valued at, and the values that this is read against."""
    valued_step: int = -1
    """The last step that was evaluated."""

    @classmethod
    @abstractmethod
    def draw_losses(cls, learners: Sequence[Self]) -> Drawn:
        """What R runs descend at their next step."""

    @abstractmethod
    def value(self) -> dict[str, float]:
        """What the greedy policy is worth now; `criterion` is among it."""

    @property
    @abstractmethod
    def criterion(self) -> str:
        """The metric that the best checkpoint has the highest of."""

    @property
    @abstractmethod
    def learned_from(self) -> str:
        """What it learns from, in one line."""

    @property
    @abstractmethod
    def grounds(self) -> Grounds:
        """What decides the run, beside its settings."""

    @property
    @abstractmethod
    def own_state(self) -> Mapping[str, torch.Tensor]:
        """What it goes on from, beside its tables, its optimizer and its generator."""

    @abstractmethod
    def load_own_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `own_state` gave."""

    def go_on_from(self, checkpoint: Checkpoint) -> Self:
        """Go on as if the run had never stopped, bit for bit; the policy is the checkpoint's already."""
        description, state = checkpoint.description, checkpoint.state()
        load_optimizer_state(self.optimizer, self.policy, checkpoint.optimizer_state())
        self.generator.set_state(state["generator"])
        self.load_own_state(state)
        self.step = self.valued_step = description.step
        self.metrics = dict(description.metrics)
        return self

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

    def evaluate(self) -> None:
        """Value the greedy policy; a step that was valued already is not counted twice.

        A step that is valued because the run was interrupted there counts neither for the best nor for patience, which
        a run that was never interrupted would not know.
        """
        if self.valued_step == self.step:
            return
        self.valued_step, metrics, best = self.step, self.metrics, f"best_{self.criterion}"
        metrics |= self.value()
        if not self.evaluation_is_due:
            return
        value = metrics[self.criterion]
        is_best = value > metrics.get(best, -math.inf)
        metrics[best] = value if is_best else metrics[best]
        metrics["evaluations_since_best"] = 0 if is_best else metrics["evaluations_since_best"] + 1

    @property
    def description(self) -> Mapping[str, Any]:
        """What a checkpoint of this moment says of itself."""
        grounds = self.grounds
        return {
            "step": self.step,
            "config": self.config,
            "world": self.learned_from,
            "world_fingerprint": grounds.world_fingerprint,
            "log_fingerprint": grounds.log_fingerprint,
            "init_fingerprint": grounds.init_fingerprint,
            "metrics": self.metrics,
        }

    @property
    def state(self) -> Mapping[str, torch.Tensor]:
        """What it goes on from, beside its tables and its optimizer."""
        return {"generator": self.generator.get_state(), **self.own_state}

    def save(self, run: Path) -> Path:
        """Write a checkpoint of this moment; keep the last and the best."""
        directory = save_checkpoint(run, self.description, self.policy, self.optimizer, self.state, self.grounds.ranker)
        keep_last_and_best(run, self.criterion)
        return directory


Run = TypeVar("Run", bound=Learner)


def take_step(learners: Sequence[Run], optimizer: torch.optim.Optimizer) -> None:
    """One gradient step of each of R runs that differ by their seed alone, on a batch each.

    The rows of all batches go through the tables and their gradient together. A row reaches no other run's tables, and
    each run draws from its own generator, so each takes the step that it would take alone.

    Args:
        learners: R of them, at the same step.
        optimizer: of the tables of all.

    Raises:
        NonFiniteLossError: a loss or its gradient is not finite; no parameter was changed.
    """
    descend(learners, optimizer, *learners[0].draw_losses(learners))


def descend(
    learners: Sequence[Learner],
    optimizer: torch.optim.Optimizer,
    losses: torch.Tensor,
    logits: Logits,
    log_weight: torch.Tensor | None = None,
) -> None:
    """Take each run's step down its loss; losses, logits and weights as of `Drawn`, the rest as of `take_step`."""
    estimator, step = learners[0].config.estimator, learners[0].step + 1
    for learner, loss in zip(learners, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"step {step}: loss of estimator {estimator} is {loss}", learner.config.seed)
    optimizer.zero_grad()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    norms = [learner.policy.gradient_norm() for learner in learners]
    for learner, norm in zip(learners, norms, strict=True):
        if not math.isfinite(norm):
            message = f"step {step}: gradient of estimator {estimator} has norm {norm}"
            raise NonFiniteLossError(message, learner.config.seed)
    optimizer.step()
    weights = [None] * len(learners) if log_weight is None else log_weight.chunk(len(learners))
    own = zip(of_runs(logits, len(learners)), weights, strict=True)
    for learner, loss, norm, of_own in zip(learners, losses.tolist(), norms, own, strict=True):
        learner.step = step
        if learner.evaluation_is_due:
            learner.metrics |= step_metrics(loss, norm, *of_own)


def step_metrics(loss: float, norm: float, logits: Logits, log_weight: torch.Tensor | None = None) -> dict[str, float]:
    """What a step says of itself; see METRICS.

    The effective number of items of an expert in a context is exp of its softmax's entropy.
    """
    return {
        "loss": loss,
        "gradient_norm": norm,
        "effective_items": float(entropy(logits.detach(), log_weight).exp().mean()),
    }
