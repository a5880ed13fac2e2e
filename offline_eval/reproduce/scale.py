"""Scale: what a training step costs over the number of items, with the full catalogue and with a sampled one.

Axes: B batch, N items, D embedding dimension, K candidates.
"""

import multiprocessing
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from esr_trainer.catalogue_index import build_all
from esr_trainer.config import CatalogueName, DeviceName, TrainConfig
from esr_trainer.features import id_features
from esr_trainer.preparation import InWorld
from esr_trainer.sampled_training import copy_of
from esr_trainer.synthetic import pairwise_synthetic_world
from esr_trainer.system import system_of
from esr_trainer.training import Trainer, new_trainer
from esr_trainer.world import World
from offline_eval.grids import Grid
from offline_eval.reproduce.attained import Peaks, Taken, finish, seconds_of, timed, work_of
from offline_eval.reproduce.workers import end_with_parent

CONTEXTS = 1000
"""C of the worlds, whose rewards are worked out pair by pair: matrices would be most of the memory."""

SHAPE = {"embedding_dim": 64, "batch": 128, "candidates": 100, "experts": 1, "entropy": 0.0}

KINDS: Mapping[DeviceName, tuple[CatalogueName, ...]] = {"cpu": ("full", "sampled"), "cuda": ("full",)}
"""A GPU has no index to sample by."""

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
    gemm_share: float | None = None
    """FLOPs of the logits and of their two gradients in a second, of a large product's; None in older results."""
    copy_share: float | None = None
    """Bytes of the rows used, and of the optimizer's for them, in a second, of a copy's; None in older results."""


def settings(catalogue: CatalogueName, num_items: int, **more: object) -> TrainConfig:
    """The settings that are timed: `top1`, one expert."""
    own = {"environment": "synthetic", "contexts": CONTEXTS, "items": num_items, "catalogue": catalogue}
    return TrainConfig.model_validate({**own, **SHAPE, **more})


def trainer_in(world: World, config: TrainConfig) -> Trainer:
    """A run at its first step, not evaluated."""
    kind = InWorld(config, None, world).kind
    ids = id_features(world.context_ids), id_features(world.item_ids)
    return new_trainer(config, world, system_of(config, world), *ids, kind)


def world_on(device: DeviceName, num_items: int) -> World:
    """The world of N items."""
    return pairwise_synthetic_world(CONTEXTS, num_items).to(device)


def scale_timings(sizes: Sequence[int], repeats: int, device: DeviceName, peaks: Peaks) -> Iterable[ScaleTiming]:
    """Time steps of every kind in turn, so that a slow moment of the machine hits all; then the memory of each.

    Args:
        sizes: N.
        repeats: timed full steps, and SAMPLED_PER_FULL times as many sampled ones.
        device: where.
        peaks: what shares are of.

    Yields:
        A row for each kind, as soon as a size is done.
    """
    kinds, counts = KINDS[device], {"full": 1, "sampled": SAMPLED_PER_FULL}
    for num_items in sizes:
        world = world_on(device, num_items)
        runs = {k: trainer_in(world, settings(k, num_items, index_every=10**6, device=device)) for k in kinds}
        taken: dict[str, list[Taken]] = {kind: [] for kind in kinds}
        for repeat in range(WARM_UP + repeats):
            own = {kind: [timed(run.advance, device) for _ in range(counts[kind])] for kind, run in runs.items()}
            for kind in kinds if repeat >= WARM_UP else ():
                taken[kind] += own[kind]
        works = {kind: work_of(run) for kind, run in runs.items()}
        building = index_seconds(runs["sampled"]) if "sampled" in runs else 0.0
        del runs
        for kind in kinds:
            median = Taken(*map(statistics.median, zip(*taken[kind], strict=True)))
            share = Peaks(*(work / seconds_of(median, device) for work in works[kind]))
            yield ScaleTiming(
                num_items,
                kind,
                1e3 * median.wall,
                1e3 * median.own,
                alone(beyond_tables, kind, num_items, device),
                building if kind == "sampled" else 0.0,
                share.flops / peaks.flops,
                share.moved / peaks.moved,
            )


def index_seconds(trainer: Trainer) -> float:
    """Processor seconds of building an index of a run's items."""
    embeddings = copy_of(trainer.policy.item_tower)
    return timed(lambda: build_all(embeddings, 0), "cpu").own


def alone(
    measure: Callable[[CatalogueName, int, DeviceName], float], kind: CatalogueName, num_items: int, device: DeviceName
) -> float:
    """A measurement in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        return pool.submit(measure, kind, num_items, device).result()


def beyond_tables(catalogue: CatalogueName, num_items: int, device: DeviceName) -> float:
    """GB that this process takes at most for a few steps, beyond its imports, its tables and their optimizer's."""
    torch.set_num_threads(1)
    before = 0 if device == "cuda" else resident("VmRSS")
    config = settings(catalogue, num_items, index_every=MEMORY_STEPS - 1, device=device)
    trainer = trainer_in(world_on(device, num_items), config)
    for _ in range(MEMORY_STEPS):
        trainer.advance()
    trainer.own_state  # noqa: B018  # waits for the index that is being built
    finish(device)
    tables = [*trainer.policy.parameters(), *(v for s in trainer.optimizer.state.values() for v in s.values())]
    kept: int = sum(tensor.nbytes for tensor in tables)
    at_most = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return 1e-9 * (at_most - before - kept)


def resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM): getrusage's maximum may be its parent's."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def scale_grid(rows: Sequence[ScaleTiming], peaks: Peaks) -> Grid:
    """A line for each N: every kind, and what two are to each other."""
    found = {(row.num_items, row.catalogue): row for row in rows}
    lines = []
    for num_items in dict.fromkeys(row.num_items for row in rows):
        full, sampled = pair = [found.get((num_items, kind)) for kind in KINDS["cpu"]]
        both = full.processor_milliseconds / sampled.processor_milliseconds if full and sampled else None
        lines.append(
            [
                f"{num_items:,}",
                *(cell(row, lambda row: f"{row.milliseconds:.0f} ({row.processor_milliseconds:.0f})") for row in pair),
                "" if both is None else f"{both:.1f}",
                *(cell(row, lambda row: f"{row.beyond_tables_gb:.2f}") for row in pair),
                cell(sampled, lambda row: f"{row.index_seconds:.1f}"),
                *(cell(row, shares) for row in pair),
            ]
        )
    head = ["items", "full, ms", "sampled, ms", "ratio", "full, GB", "sampled, GB", "index, s"]
    head += ["full, %", "sampled, %"]
    caption = (
        f"top1, {SHAPE['embedding_dim']} dimensions, batch {SHAPE['batch']}, K = {SHAPE['candidates']}, M = 1, one "
        "thread. ms: median of a step by the clock, in brackets of its processor time; ratio: of processor times. "
        "GB: most memory beyond tables and optimizer. s: processor time of an index, built beside the steps. "
        f"%: FLOPs of the logits and of their two gradients, of a large product's ({1e-9 * peaks.flops:,.0f} GFLOP/s), "
        "and bytes of the table and optimizer rows used, read and written once, of a large copy's "
        f"({1e-9 * peaks.moved:,.1f} GB/s); by processor time, on a GPU by the clock."
    )
    return Grid("A training step over the size of the catalogue", head, lines, caption)


def cell(row: ScaleTiming | None, text: Callable[[ScaleTiming], str]) -> str:
    """What a row says; nothing where there is none."""
    return text(row) if row else ""


def shares(row: ScaleTiming) -> str:
    """Both shares, in percent; nothing in older results."""
    if row.gemm_share is None or row.copy_share is None:
        return ""
    return f"{100 * row.gemm_share:.0f}, {100 * row.copy_share:.0f}"
