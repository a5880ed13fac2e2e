"""Checkpoints of tables that are shared out: every process writes and reads its own rows.

torch.distributed.checkpoint plans who writes and reads what; its safetensors storage keeps each piece's offsets in its
file's header, so that any number of processes can read what any other wrote, and nothing is a pickle. A checkpoint is
in all else one of `esr_trainer.checkpoint`, which reads such tables too.

Axes: V rows of a table, W processes.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torchrec.distributed.shards_wrapper import LocalShardsWrapper

from esr_trainer.checkpoint import Checkpoint, is_moment, moments_of, write_rest
from esr_trainer.command_line import UsageError
from esr_trainer.features import load_features
from esr_trainer.placement import Placement
from esr_trainer.ranker_files import RankerFile
from esr_trainer.ranks import Ranks
from esr_trainer.sharded_towers import ShardedRanker, place
from esr_trainer.table_pieces import read_into, tensors_in
from esr_trainer.whole_directory import written_whole


class ShardedCheckpoint(Checkpoint):
    """A verified checkpoint, of which each process reads the rows that are placed with it."""

    def __init__(self, directory: Path, sharding: str, ranks: Ranks) -> None:
        """Open it; the first process checks the files.

        Raises:
            UsageError: as of `Checkpoint`.
        """
        super().__init__(directory, is_checked=ranks.is_first)
        self.ranks = ranks
        self.contexts, self.items = (load_features(self.directory, side) for side in ("context", "item"))
        self.places = place(self.contexts, self.items, self.config, sharding, ranks)

    def policy(self) -> ShardedRanker:
        """The ESR with its trained weights."""
        policy = ShardedRanker(self.contexts, self.items, self.config, self.places, self.ranks)
        self.read_own({name: table.detach() for name, table in policy.named_parameters()})
        return policy

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors of the rows that are here, by `<parameter>.<name>`."""
        state = {}
        for name, whole in tensors_in(self.directory).items():
            if is_moment(name):
                rows = self.places[tower_of(name)].rows[self.ranks.index]
                shape = (len(rows), *whole.shape[1:]) if whole.dim() else ()
                state[name] = torch.zeros(shape, dtype=whole.dtype)
        self.read_own(state)
        return state

    def state(self) -> dict[str, Tensor]:
        """What else the run goes on from; with it what this process kept alone, if it was one of as many."""
        there = tensors_in(self.directory)
        own = {name: torch.empty_like(one, device="cpu") for name, one in there.items() if self.ranks.is_mine(name)}
        if own:
            read_into(self.directory, own)
        return {**super().state(), **own}

    def read_own(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors of the rows that are here, by name."""
        if tensors:
            wanted = {name: as_shared(own, self.places[tower_of(name)], self.ranks) for name, own in tensors.items()}
            load(wanted, storage_reader=HuggingFaceStorageReader(str(self.directory)))


def save_sharded(
    run: Path,
    description: Mapping[str, Any],
    policy: ShardedRanker,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    ranker: RankerFile | None,
    kept_alone: Mapping[str, Tensor],
) -> Path:
    """Write `checkpoints/<step>` of a run, whole or not at all.

    The first process makes the directory and gives it its name when all have written.

    Args:
        run, description, policy, optimizer, state, ranker: as of `save_checkpoint`.
        kept_alone: what this process goes on from and no other, by names of its own.

    Raises:
        UsageError: a process cannot write; nothing is left half-written.
    """
    ranks = policy.ranks
    target = run / "checkpoints" / f"{description['step']:08d}"
    if ranks.told(target.exists):  # the run stopped right after a regular checkpoint
        return target
    with ExitStack() as stack:
        directory = ranks.told(lambda: stack.enter_context(written_whole(target)))

        def finish() -> None:
            try:
                write_rest(directory, description, policy, state, ranker)
            except SafetensorError as error:
                raise UsageError(str(error)) from error
            stack.close()

        try:
            save_tables(directory, policy, optimizer, kept_alone)
            ranks.told(finish)
        except (CheckpointException, UsageError) as error:
            failures = error.failures.values() if isinstance(error, CheckpointException) else [(error,)]
            raise UsageError(f"checkpoint ({target}) cannot be written: {next(iter(failures))[0]}") from error
    return target


def save_tables(
    directory: Path, policy: ShardedRanker, optimizer: torch.optim.Optimizer, kept_alone: Mapping[str, Tensor]
) -> None:
    """Write the rows that are here, the optimizer's state of them, and what is kept here alone.

    Raises:
        CheckpointException: a process cannot write.
    """
    own = {**{name: table.detach() for name, table in policy.named_parameters()}, **moments_of(policy, optimizer)}
    tensors = {name: as_shared(tensor, policy.places[tower_of(name)], policy.ranks) for name, tensor in own.items()}
    save({**tensors, **kept_alone}, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))


def tower_of(name: str) -> str:
    """The tower that a parameter, or an optimizer's tensor, is of."""
    return name.partition(".")[0]


def as_shared(own: Tensor, place: Placement, ranks: Ranks) -> Any:
    """What torch.distributed.checkpoint takes: a tensor that all have, or these rows as a part of all, (V, ...)."""
    if place.is_replicated or not own.dim():
        return own
    first = place.rows[ranks.index].start
    offset = (first, *(0 for _ in own.shape[1:]))
    here = LocalShardsWrapper([own], [offset]) if len(own) else LocalShardsWrapper([], [])
    shape = torch.Size((sum(map(len, place.rows)), *own.shape[1:]))
    mesh = init_device_mesh(own.device.type, (ranks.count,))
    return DTensor.from_local(here, mesh, [Shard(0)], run_check=False, shape=shape, stride=own.stride())
