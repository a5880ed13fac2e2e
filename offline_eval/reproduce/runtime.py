"""Runtime: milliseconds of a training step, as a multiple of the kernels that no implementation can leave out.

Axes: B batch, N items, D embedding dimension, M experts, K candidates, L slots.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from esr_trainer.config import TrainConfig
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.features import id_features
from esr_trainer.synthetic import synthetic_world
from esr_trainer.system import system_of
from esr_trainer.training import Trainer, new_trainer
from esr_trainer.world import World

SHAPES = ((10, 1, 1), (5, 1, 1), (20, 1, 1), (20, 5, 1), (50, 5, 1), (200, 1, 1), (10, 1, 5), (50, 1, 5), (200, 1, 5))
"""(K, L, M) at 1,000 items."""

LARGE = (10_000, 100_000)
"""Numbers of items at K = 100, L = 1, M = 1."""

WARM_UP = 5


class Timing(NamedTuple):
    """One row of the benchmark."""

    estimator: str
    num_items: int
    num_candidates: int
    num_slots: int
    num_experts: int
    milliseconds: float
    """Median of a training step."""
    floor_milliseconds: float
    """Median of the floor at this N, K and M = 1, measured step by step in turn with it."""

    @property
    def multiple(self) -> float:
        """Step over floor."""
        return self.milliseconds / self.floor_milliseconds


def floor_step(batch: int, num_items: int, dimension: int, num_candidates: int) -> Callable[[], None]:
    """What a step of one expert cannot do without.

    The logits' GEMM and its two backward GEMMs, one uniform fill and two logarithms over (B, N), one top-K.
    """
    generator = torch.Generator().manual_seed(0)
    context = torch.randn((batch, dimension), generator=generator)
    items = torch.randn((num_items, dimension), generator=generator)
    noise = torch.empty(batch, num_items)

    def step() -> None:
        logits = context @ items.T
        noise.uniform_(generator=generator).log_().neg_().log_()
        noise.topk(num_candidates)
        _ = logits @ items
        _ = logits.T @ context

    return step


def medians(steps: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median milliseconds of several functions, called in turn so that a slow moment of the machine hits all alike.

    Of this thread's processor time: the turns that other processes take do not count.
    """
    taken: list[list[float]] = [[] for _ in steps]
    for repeat in range(WARM_UP + repeats):
        for times, step in zip(taken, steps, strict=True):
            began = time.thread_time()
            step()
            if repeat >= WARM_UP:
                times.append(1e3 * (time.thread_time() - began))
    return [statistics.median(times) for times in taken]


def runtime(
    estimators: Iterable[str], shapes: Iterable[tuple[int, int, int]], num_items: int, repeats: int
) -> Iterable[Timing]:
    """Time a training step of the default preset on a synthetic world, batch 128, for each shape and estimator.

    Args:
        estimators: names.
        shapes: (K, L, M).
        num_items: N.
        repeats: timed steps of each.

    Yields:
        A row as soon as it is measured; the estimators of a shape are timed in turn, with their floor.
    """
    world = synthetic_world(num_contexts=200 if num_items > 1000 else 1000, num_items=num_items)
    names = tuple(estimators)
    for num_candidates, num_slots, num_experts in shapes:
        trainers = [trainer_of(world, name, num_candidates, num_slots, num_experts) for name in names]
        config = trainers[0].config
        floor = floor_step(config.batch, num_items, config.embedding_dim, num_candidates)
        floor_time, *times = medians([floor, *(trainer.advance for trainer in trainers)], repeats)
        for name, milliseconds in zip(names, times, strict=True):
            yield Timing(name, num_items, num_candidates, num_slots, num_experts, milliseconds, floor_time)


def trainer_of(world: World, estimator: str, num_candidates: int, num_slots: int, num_experts: int) -> Trainer:
    """A run at its first step, not evaluated, without the entropy bonus: the estimators are what is timed."""
    config = TrainConfig.model_validate(
        {
            "environment": "synthetic",
            "estimator": estimator,
            "candidates": num_candidates,
            "slate": num_slots,
            "experts": num_experts,
            "entropy": 0.0,
        }
    )
    return new_trainer(
        config, world, system_of(config, world), id_features(world.context_ids), id_features(world.item_ids)
    )


def whole_runtime(repeats: int, is_large_wanted: bool) -> Iterable[Timing]:
    """Every estimator at SHAPES, and at LARGE numbers of items if wanted; `runtime`'s rows."""
    names = [name for name in ESTIMATORS if name != "top1"]  # top1 is ca-swr
    yield from runtime(names, SHAPES, 1000, repeats)
    for num_items in LARGE if is_large_wanted else ():
        yield from runtime(names, ((100, 1, 1),), num_items, max(3, 10 * repeats // (num_items // 1000)))
