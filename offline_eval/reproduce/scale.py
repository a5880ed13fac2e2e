"""Scale: what a training step costs over the number of items, with the full catalogue and with a sampled one.

Axes: B batch, N items, D embedding dimension, K candidates.
"""

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from esr_trainer.catalogue_index import build_all
from esr_trainer.config import CatalogueName, TrainConfig
from esr_trainer.features import id_features
from esr_trainer.sampled_training import SampledTrainer, copy_of
from esr_trainer.synthetic import pairwise_synthetic_world
from esr_trainer.system import system_of
from esr_trainer.training import Trainer, new_trainer
from esr_trainer.world import World
from offline_eval.grids import Grid
from offline_eval.reproduce.workers import end_with_parent

CONTEXTS = 1000
"""C of the worlds, whose rewards are worked out pair by pair: matrices would be most of the memory."""

SHAPE = {"embedding_dim": 64, "batch": 128, "candidates": 100, "experts": 1, "entropy": 0.0}

KINDS: tuple[CatalogueName, ...] = ("full", "sampled")

WARM_UP = 1
SAMPLED_PER_FULL = 4
"""Sampled steps that are timed beside a full one."""

MEMORY_STEPS = 3
"""Steps of a process whose memory is measured; at the last the index is built anew."""


class ScaleTiming(NamedTuple):
    """One row of the benchmark."""

    num_items: int
    catalogue: str
    milliseconds: float
    """Median of a step, by the clock on the wall."""
    processor_milliseconds: float
    """The same, of the thread's processor time: what others take of a shared machine does not count."""
    beyond_tables_gb: float
    """Most memory of a process that takes MEMORY_STEPS, beyond what it began with, its tables and their optimizer's."""
    index_seconds: float
    """Processor time of building the index; 0 without."""


def settings(catalogue: CatalogueName, num_items: int, **more: object) -> TrainConfig:
    """The settings that are timed: `top1`, one expert."""
    own = {"environment": "synthetic", "contexts": CONTEXTS, "items": num_items, "catalogue": catalogue}
    return TrainConfig.model_validate({**own, **SHAPE, **more})


def trainer_in(world: World, config: TrainConfig) -> Trainer:
    """A run at its first step, not evaluated."""
    kind = SampledTrainer if config.samples(world.num_items) else Trainer
    ids = id_features(world.context_ids), id_features(world.item_ids)
    return new_trainer(config, world, system_of(config, world), *ids, kind)


def times(step: Callable[[], None], count: int) -> list[tuple[float, float]]:
    """Milliseconds of some steps, by the wall and of this thread's processor time."""
    taken = []
    for _ in range(count):
        wall, own = time.perf_counter(), time.thread_time()
        step()
        taken.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - own)))
    return taken


def scale_timings(sizes: Sequence[int], repeats: int) -> Iterable[ScaleTiming]:
    """Time steps of both kinds in turn, so that a slow moment of the machine hits both; then the memory of each.

    Args:
        sizes: N.
        repeats: timed full steps, and SAMPLED_PER_FULL times as many sampled ones.

    Yields:
        A row for each kind, as soon as a size is done.
    """
    for num_items in sizes:
        world = pairwise_synthetic_world(CONTEXTS, num_items)
        full, sampled = (trainer_in(world, settings(kind, num_items, index_every=10**6)) for kind in KINDS)
        taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for repeat in range(WARM_UP + repeats):
            own = {"full": times(full.advance, 1), "sampled": times(sampled.advance, SAMPLED_PER_FULL)}
            for kind in KINDS if repeat >= WARM_UP else ():
                taken[kind] += own[kind]
        embeddings = copy_of(sampled.policy.item_tower)
        del full, sampled
        for kind in KINDS:
            wall, processor = (statistics.median(of) for of in zip(*taken[kind], strict=True))
            seconds = index_seconds(embeddings) if kind == "sampled" else 0.0
            yield ScaleTiming(num_items, kind, wall, processor, alone(beyond_tables, kind, num_items), seconds)


def index_seconds(embeddings: np.ndarray) -> float:
    """Processor seconds of building an index of (M, N, D)."""
    began = time.thread_time()
    build_all(embeddings, 0)
    return time.thread_time() - began


def alone(measure: Callable[[CatalogueName, int], float], kind: CatalogueName, num_items: int) -> float:
    """A measurement in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        return pool.submit(measure, kind, num_items).result()


def beyond_tables(catalogue: CatalogueName, num_items: int) -> float:
    """GB that this process takes at most for a few steps, beyond its imports, its tables and their optimizer's."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    config = settings(catalogue, num_items, index_every=MEMORY_STEPS - 1)
    trainer = trainer_in(pairwise_synthetic_world(CONTEXTS, num_items), config)
    for _ in range(MEMORY_STEPS):
        trainer.advance()
    trainer.own_state  # noqa: B018  # waits for the index that is being built
    tables = [*trainer.policy.parameters(), *(v for s in trainer.optimizer.state.values() for v in s.values())]
    kept: int = sum(tensor.nbytes for tensor in tables)
    return 1e-9 * (resident("VmHWM") - before - kept)


def resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM): getrusage's maximum may be its parent's."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def scale_grid(rows: Sequence[ScaleTiming]) -> Grid:
    """A line for each N: both kinds, and what they are to each other."""
    found = {(row.num_items, row.catalogue): row for row in rows}
    lines = []
    for num_items in dict.fromkeys(row.num_items for row in rows):
        full, sampled = (found[num_items, kind] for kind in KINDS)
        lines.append(
            [
                f"{num_items:,}",
                *(f"{row.milliseconds:.0f} ({row.processor_milliseconds:.0f})" for row in (full, sampled)),
                f"{full.processor_milliseconds / sampled.processor_milliseconds:.1f}",
                *(f"{row.beyond_tables_gb:.2f}" for row in (full, sampled)),
                f"{sampled.index_seconds:.1f}",
            ]
        )
    head = ["items", "full, ms", "sampled, ms", "ratio", "full, GB", "sampled, GB", "index, s"]
    caption = (
        f"top1, {SHAPE['embedding_dim']} dimensions, batch {SHAPE['batch']}, K = {SHAPE['candidates']}, M = 1, one "
        "thread. ms: median of a step by the clock, in brackets of its processor time; ratio: of processor times. "
        "GB: most memory beyond tables and optimizer. s: processor time of an index, built beside the steps."
    )
    return Grid("A training step over the size of the catalogue", head, lines, caption)
