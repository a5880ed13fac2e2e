"""What of this machine a training step attains: its share of the largest GEMM's speed and of a large copy's.

Axes: B batch, M experts, J columns of the logits (N, or those of a sample), D embedding dimension.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.training import Trainer

GEMM = {"cpu": 2048, "cuda": 8192}
"""Rows, columns and depth of the product whose speed counts as the peak."""

COPY = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Bytes of the copy whose speed counts as the bandwidth."""

TRIES = 5
"""Of which the best counts."""


class Taken(NamedTuple):
    """Seconds."""

    wall: float
    own: float
    """Processor time of this thread, which others on a shared machine do not add to; on a GPU that of starting it."""


class Work(NamedTuple):
    """What a step cannot leave out."""

    flops: float
    """Of the logits and of their two gradients: 3 products of 2 B M J D, in float32."""
    moved: float
    """Bytes of the table rows that the step uses and of the optimizer's numbers for them, read and written once."""


class Peaks(NamedTuple):
    """What the machine does at most, in a second."""

    flops: float
    """Of one product of float32 matrices."""
    moved: float
    """Bytes read and written by a copy."""


def timed(act: Callable[[], object], device: str) -> Taken:
    """How long it takes; on a GPU, until that is done."""
    finish(device)
    wall, own = time.perf_counter(), time.thread_time()
    act()
    finish(device)
    return Taken(time.perf_counter() - wall, time.thread_time() - own)


def finish(device: str) -> None:
    """Wait for what a GPU was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(taken: Taken, device: str) -> float:
    """Those that shares are of: processor time on the CPU, where one thread computes; the clock's on a GPU."""
    return taken.wall if device == "cuda" else taken.own


def measure_peaks(device: str) -> Peaks:
    """A large product and a large copy, the best of TRIES each."""
    size, numbers = GEMM[device], COPY[device] // 4
    one, other, into = (torch.ones(size, size, device=device) for _ in range(3))
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)

    def best(act: Callable[[], object]) -> float:
        return min(seconds_of(timed(act, device), device) for _ in range(TRIES))

    product, copy = best(lambda: torch.mm(one, other, out=into)), best(lambda: target.copy_(source))
    return Peaks(2 * size**3 / product, 2 * COPY[device] / copy)


def work_of(trainer: Trainer) -> Work:
    """What a step of a run that has taken one cannot leave out.

    Not counted: noise, top-K, exponentials, the search of a sampled head, and the gradient, which a kernel could use
    where it is made.
    """
    batch, experts, columns = type(trainer).draw_losses([trainer]).logits.shape
    flops = 3 * 2 * batch * experts * columns * trainer.config.embedding_dim
    return Work(flops, sum(moved_of(table, trainer.optimizer.state[table]) for table in trainer.policy.parameters()))


def moved_of(table: Tensor, state: dict[str, Tensor]) -> float:
    """Bytes of the rows that have a gradient, and of the optimizer's numbers for them, read and written."""
    gradient = table.grad
    assert gradient is not None
    share = gradient.coalesce().indices().shape[1] / len(table) if gradient.is_sparse else 1.0
    kept = [table, *(numbers for numbers in state.values() if numbers.dim() and len(numbers) == len(table))]
    return 2 * share * sum(numbers.nbytes for numbers in kept)
