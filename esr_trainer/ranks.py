"""The processes of one run, as torchrun starts them: what they reduce, exchange and agree on.

Axes: W processes ("ranks").
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from esr_trainer.command_line import UsageError

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others; one that dies is noticed at once."""

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Device -> what carries its tensors."""

Told = TypeVar("Told")


class Ranks:
    """This process among those of a run; what they say to each other all of them say, in the same order."""

    def __init__(self, device: str) -> None:
        self.index = dist.get_rank()
        self.count = dist.get_world_size()
        self.device = torch.device(device)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def mine(self, name: str) -> str:
        """A name that no other process has, nor one of another number of processes."""
        return f"{self.index}_of_{self.count}_{name}"

    def is_mine(self, name: str) -> bool:
        """Whether `mine` gave it."""
        return name.startswith(self.mine(""))

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the parts; the same bits everywhere."""
        total = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def max(self, part: Tensor) -> Tensor:
        """The largest of the parts, element by element."""
        largest = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    def gather(self, part: Tensor) -> list[Tensor]:
        """Everybody's part, W of the same shape."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, part.detach().contiguous())
        return parts

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send the first rows to rank 0, the next to rank 1 and so on, and give what came, in rank order.

        Args:
            rows: (sum of sent, ...).
            sent: how many go to each, W.
            received: how many come from each, W.
        """
        came = rows.new_empty((sum(received), *rows.shape[1:]))
        dist.all_to_all_single(came, rows.detach().contiguous(), list(received), list(sent))
        return came

    def told(self, speak: Callable[[], Told]) -> Told:
        """What the first of them finds out; if it refuses, all do.

        Raises:
            UsageError: the first one's.
        """
        outcome: list[tuple[Told | None, str | None]] = [(None, None)]
        if self.is_first:
            try:
                outcome = [(speak(), None)]
            except (UsageError, OSError) as error:
                outcome = [(None, str(error))]
        dist.broadcast_object_list(outcome, device=self.device)
        value, refusal = outcome[0]
        if refusal is not None:
            raise UsageError(refusal)
        return value  # type: ignore[return-value]

    def any(self, here: bool) -> bool:
        """Whether it is so for any of them."""
        return bool(self.max(torch.tensor(int(here), device=self.device)))

    def wait(self) -> None:
        """Until all are here."""
        self.sum(torch.zeros(1, device=self.device))


def is_one_of_many() -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def num_processes() -> int:
    """W, where `is_one_of_many`."""
    return int(os.environ["WORLD_SIZE"])


def times_restarted() -> int:
    """How often torchrun started these processes again after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Within the block this process is one of a group; within another such block it is one already."""
    if dist.is_initialized():
        yield Ranks(device)
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, index, count = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps its store over a restart, with the addresses of processes that are gone
    fresh = PrefixStore(f"start {times_restarted()}", store)
    dist.init_process_group(BACKENDS[device], store=fresh, rank=index, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(device)
    finally:
        dist.destroy_process_group()
