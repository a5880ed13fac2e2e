"""Where the rows of a table live: torchrec's planner decides, for one kind of sharding or freely.

Rows are moved by `esr_trainer.sharded_towers`, not by torchrec's sharded modules: those train model-parallel tables
with optimizers that are fused into the backward pass, which on a CPU have no Adam, and which have changed the tables by
the time that a gradient turns out not to be finite.

Axes: V rows of a table, W processes.
"""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ParameterSharding, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from esr_trainer.command_line import UsageError

KINDS: Mapping[str, ShardingType] = {
    "row-wise": ShardingType.ROW_WISE,
    "table-wise": ShardingType.TABLE_WISE,
    "data-parallel": ShardingType.DATA_PARALLEL,
}
"""What `--sharding` may ask for beside `auto`, which leaves the choice to the planner."""

RESERVED = 0.15
"""Share of the memory that the planner leaves free."""


class Placement(NamedTuple):
    """Where a table's rows are."""

    rows: tuple[range, ...]
    """Of each process, W; one after the other in rank order, or all of them everywhere."""
    is_replicated: bool
    """Whether every process has all rows."""


class Sizes(NamedTuple):
    """What decides how much memory and how many messages tables take."""

    contexts: int
    """C."""
    items: int
    """N."""
    width: int
    """Numbers in a row of either table: M times D."""
    batch: int
    """Contexts per step."""


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """What may become of a table; torchrec offers rows on a GPU alone."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """The kinds, in torchrec's words."""
        return [kind.value for kind in KINDS.values()]


def place_tables(sharding: str, sizes: Sizes, num_processes: int, device: str) -> dict[str, Placement]:
    """Plan where the tables of a run live.

    Of its own accord the planner leaves the items where they are read: a step reads all of them, block by block, and
    the table of one process would be sent to all others at every step.

    Args:
        sharding: a key of KINDS, or `auto`.
        sizes: of the run.
        num_processes: W.
        device: where they compute.

    Returns:
        The rows of `context_tower` and `item_tower`.

    Raises:
        UsageError: no plan fits into the memory.
    """
    wanted = [sharding] if sharding in KINDS else list(KINDS)
    found = [kind for kind in wanted if sharding != "auto" or kind != "table-wise"]
    lookups = {
        "context_tower": (sizes.contexts, -(-sizes.batch // num_processes), wanted),
        "item_tower": (sizes.items, -(-sizes.items // num_processes), found),
    }
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, embedding_dim=sizes.width, num_embeddings=count, feature_names=[name])
            for name, (count, _, _) in lookups.items()
        ],
        device=torch.device("meta"),
    )
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(world_size=num_processes, local_world_size=num_processes),
            kernel_config=KernelConfig(compute_device=device),
        ),
        constraints={
            name: ParameterConstraints(sharding_types=[KINDS[kind].value for kind in kinds], batch_sizes=[batch])
            for name, (_, batch, kinds) in lookups.items()
        },
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
    )
    logging.disable(logging.WARNING)  # the planner's estimators warn of tables that are replicated
    try:
        plan = planner.plan(nn.ModuleDict({"tables": collection}), [Sharder()]).plan["tables"]
    except PlannerError as error:
        raise UsageError(f"sharding ({sharding}) finds no place for the tables: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
    return {name: placement_of(plan[name], count, num_processes) for name, (count, _, _) in lookups.items()}


def placement_of(planned: ParameterSharding, size: int, num_processes: int) -> Placement:
    """A table's place in torchrec's plan, as rows of each process."""
    if planned.sharding_type == ShardingType.DATA_PARALLEL.value:
        return Placement((range(size),) * num_processes, is_replicated=True)
    rows = [range(0)] * num_processes
    for shard in planned.sharding_spec.shards:
        first = shard.shard_offsets[0]
        rows[shard.placement.rank()] = range(first, first + shard.shard_sizes[0])
    return Placement(tuple(rows), is_replicated=False)
