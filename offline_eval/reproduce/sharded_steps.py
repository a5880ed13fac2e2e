"""What a training step costs where it is shared out: milliseconds, and bytes that a process sends.

Run by `python -m offline_eval sharding` in one process, and under torchrun in several. Axes: W processes.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.config import LARGE_CATALOGUE, TrainConfig
from esr_trainer.features import id_features
from esr_trainer.placement import KINDS
from esr_trainer.ranks import Ranks, is_one_of_many, joined
from esr_trainer.sampled_sharded_training import SampledShardedTrainer
from esr_trainer.sampled_training import SampledTrainer
from esr_trainer.sharded_training import ShardedTrainer, new_sharded_trainer
from esr_trainer.synthetic import pairwise_synthetic_world
from esr_trainer.system import system_of
from esr_trainer.training import Trainer, new_trainer
from esr_trainer.world import World

CONTEXTS = 200
WARM_UP = 3
ESTIMATORS = ("top1", "ca", "ca-poisson")


class StepCost(NamedTuple):
    """One row: a step of K = 100, M = 1, L = 1, batch 128, D = 64."""

    estimator: str
    items: int
    catalogue: str
    """`full` or `sampled`."""
    processes: int
    sharding: str
    """A kind, or `-` for one process without torchrun."""
    milliseconds: float
    """Median of the wall clock."""
    processor_milliseconds: float
    """Median of the first process's own time: what other processes take of the machine does not count."""
    bytes_computed: float
    """What a process sends in a step: 2 (W - 1) / W of what is all-reduced, W - 1 times what is gathered."""
    bytes_measured: float
    """What the loopback device carried in a step, per process, its own headers included; 0 where it is not known."""


class CountingRanks(Ranks):
    """Ranks that count what they send."""

    sent = 0.0

    def sum(self, part: Tensor) -> Tensor:
        """By reducing a share each, then gathering the shares."""
        self.sent += 2 * (self.count - 1) / self.count * part.nbytes
        return super().sum(part)

    def max(self, part: Tensor) -> Tensor:
        """As a sum."""
        self.sent += 2 * (self.count - 1) / self.count * part.nbytes
        return super().max(part)

    def gather(self, part: Tensor) -> list[Tensor]:
        """To everybody else."""
        self.sent += (self.count - 1) * part.nbytes
        return super().gather(part)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """But for the own rows."""
        self.sent += (sum(sent) - sent[self.index]) * rows[:1].nbytes if len(rows) else 0
        return super().exchange(rows, sent, received)


def loopback_bytes() -> int:
    """What the loopback device has sent since the machine began; 0 where that is not known."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.is_file() else []
    sent = [int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")]
    return sent[0] if sent else 0


def timed(step: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Median milliseconds of the wall clock, and of this process."""
    walls, owns = [], []
    for _ in range(repeats):
        wall, own = time.perf_counter(), time.process_time()
        step()
        walls.append(1e3 * (time.perf_counter() - wall))
        owns.append(1e3 * (time.process_time() - own))
    return statistics.median(walls), statistics.median(owns)


class Case(NamedTuple):
    """What is timed."""

    estimator: str
    items: int
    catalogue: str

    @property
    def config(self) -> TrainConfig:
        """The default preset on a synthetic world, one expert; no index is begun while steps are timed."""
        given = {"environment": "synthetic", "experts": 1, "embedding_dim": 64, "index_every": 100_000}
        return TrainConfig.model_validate({**given, "estimator": self.estimator, "catalogue": self.catalogue})

    @property
    def world(self) -> World:
        """Without matrices, so that what is timed is the trainer."""
        return pairwise_synthetic_world(CONTEXTS, self.items)


def cases_of(sizes: Sequence[int]) -> list[Case]:
    """The full catalogue as far as a run goes through it by itself, and a sample of any."""
    return [
        Case(name, size, catalogue)
        for size in sizes
        for catalogue in ("full", "sampled")
        for name in ESTIMATORS
        if catalogue == "sampled" or size <= LARGE_CATALOGUE
    ]


def alone(case: Case, repeats: int) -> StepCost:
    """One process, as it is without torchrun."""
    config, world = case.config, case.world
    ids = (id_features(world.context_ids), id_features(world.item_ids))
    kind = SampledTrainer if case.catalogue == "sampled" else Trainer
    trainer = new_trainer(config, world, system_of(config, world), *ids, kind)
    timed(trainer.advance, WARM_UP)
    return StepCost(*case, 1, "-", *timed(trainer.advance, repeats), 0.0, 0.0)


def shared_out(case: Case, repeats: int, sharding: str, ranks: CountingRanks) -> StepCost:
    """One of several processes."""
    config, world = case.config, case.world
    kind = SampledShardedTrainer if case.catalogue == "sampled" else ShardedTrainer
    trainer = new_sharded_trainer(config, world, system_of(config, world), sharding, ranks, kind)
    timed(trainer.advance, WARM_UP)
    ranks.wait()
    ranks.sent, before = 0.0, loopback_bytes()
    took = timed(trainer.advance, repeats)
    sent = ranks.sent / repeats
    ranks.wait()
    carried = (loopback_bytes() - before) / repeats / ranks.count
    return StepCost(*case, ranks.count, sharding, *took, sent, carried)


def main(sizes: Sequence[int], repeats: int) -> None:
    """Print a JSON list of rows."""
    torch.set_num_threads(1)
    cases = cases_of(sizes)
    if not is_one_of_many():
        rows = [alone(case, repeats) for case in cases]
        print(json.dumps([row._asdict() for row in rows]), flush=True)
        return
    with joined("cpu"):
        ranks = CountingRanks("cpu")
        rows = [
            shared_out(case, repeats, kind, ranks)
            for case in cases
            for kind in KINDS
            if case.catalogue == "full" or kind == "row-wise"
        ]
        if ranks.is_first:
            print(json.dumps([row._asdict() for row in rows]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
