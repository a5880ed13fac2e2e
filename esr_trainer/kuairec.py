"""The KuaiRec world (Gao et al., CIKM 2022): the dense matrix of its files, or a simulator of the same shape.

Axes: C contexts (users), N items (videos).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.world import World

CSV_COLUMNS = ("user_id", "video_id", "watch_ratio")
"""The columns of the original small_matrix.csv that decide the world."""

MAX_WATCH_RATIO = 10.0
REWARD_NOISE = 0.3
"""reward = watch_ratio (1 + 0.3 Normal(0, 1)) (DESIGN §5)."""


def watch_ratio_world(
    watch_ratio: Tensor, context_ids: tuple[str, ...], item_ids: tuple[str, ...], description: str, source: str
) -> World:
    """The world of a dense watch_ratio matrix: clipped to [0, 10], reward = watch_ratio (1 + 0.3 Normal(0, 1)).

    Args:
        watch_ratio: (C, N); 0 where nothing was observed.
        context_ids: C.
        item_ids: N.
        description: one line for people.
        source: what decides the world.
    """
    expected = watch_ratio.clamp(0, MAX_WATCH_RATIO)
    return World("kuairec", description, context_ids, item_ids, expected, expected, REWARD_NOISE * expected, source)


def binary_world(arrays: Mapping[str, np.ndarray], source: str) -> World:
    """The real labels 1{watch_ratio > 2} of every cell; the reward is the label (keys gt2_bits, user_id, video_id)."""
    context_ids, item_ids = ids_of(arrays)
    labels = torch.from_numpy(unpack(arrays["gt2_bits"], len(item_ids)).astype(np.float32))
    return World(
        environment="kuairec",
        description=f"KuaiRec, real labels 1{{watch_ratio > 2}}: {len(context_ids)} users x {len(item_ids)} videos",
        context_ids=context_ids,
        item_ids=item_ids,
        score=labels,
        expected_reward=labels,
        reward_std=torch.zeros(()).expand(labels.shape),
        source=source,
    )


def semisynthetic_world(arrays: Mapping[str, np.ndarray], source: str) -> World:
    """A dense matrix of real and resampled watch ratios (keys watch_ratio_milli, observed_bits, user_id, video_id)."""
    context_ids, item_ids = ids_of(arrays)
    observed = unpack(arrays["observed_bits"], len(item_ids)).mean()
    return watch_ratio_world(
        torch.from_numpy(arrays["watch_ratio_milli"].astype(np.float32) / 1000),
        context_ids,
        item_ids,
        f"semi-synthetic KuaiRec, {observed:.1%} of the cells real, the rest drawn from real values: "
        f"{len(context_ids)} users x {len(item_ids)} videos",
        source,
    )


def original_world(path: Path, source: str) -> World:
    """The original small_matrix.csv: columns user_id, video_id, watch_ratio; unobserved cells are 0.

    Where a user watched a video more than once, the last row counts.
    """
    import polars as pl

    try:
        rows = pl.read_csv(path, columns=list(CSV_COLUMNS), schema_overrides={"watch_ratio": pl.Float32})
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"data ({path}) cannot be read as CSV: {str(error).splitlines()[0]}") from error
    if rows.is_empty() or rows.null_count().sum_horizontal().item():
        raise UsageError(f"data ({path}): every row needs a value in {', '.join(CSV_COLUMNS)}")
    if not rows["watch_ratio"].is_finite().all():
        raise UsageError(f"data ({path}): every watch_ratio must be finite")
    user_ids, user_rows = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
    video_ids, video_rows = np.unique(rows["video_id"].to_numpy(), return_inverse=True)
    watch_ratio = np.zeros((len(user_ids), len(video_ids)), np.float32)
    watch_ratio[user_rows, video_rows] = rows["watch_ratio"].to_numpy()
    return watch_ratio_world(
        torch.from_numpy(watch_ratio),
        tuple(map(str, user_ids)),
        tuple(map(str, video_ids)),
        f"KuaiRec, original watch ratios of {path.name}, {len(rows) / watch_ratio.size:.1%} of the cells: "
        f"{len(user_ids)} users x {len(video_ids)} videos",
        source,
    )


def simulated_world(num_contexts: int, num_items: int, seed: int = 0) -> World:
    """A stand-in of KuaiRec's shape and marginals, for a machine without its files.

    log watch_ratio = log 0.77 + user + item + taste + noise, with user ~ N(0, 0.26^2), item ~ N(0, 0.3^2), taste the
    inner product of 8-dimensional Gaussian vectors scaled to a standard deviation of 0.25, and noise ~ N(0, 0.2^2), in
    one cell of ten N(0, 1.05^2). What comes out is near the small matrix: median 0.77, 95 % and 99 % quantiles 1.96
    and 3.6, 4.6 % of the cells above 2, per user from 0.2 % to 30 %. The cells' noise is drawn once, with the world.

    Args:
        num_contexts: C.
        num_items: N.
        seed: decides every draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rank = 8
    taste = normal(num_contexts, rank) @ normal(num_items, rank).T * (0.25 / math.sqrt(rank))
    heavy = torch.rand((num_contexts, num_items), generator=generator) < 0.1
    noise = normal(num_contexts, num_items) * torch.where(heavy, 1.05, 0.2)
    log_watch_ratio = math.log(0.77) + 0.26 * normal(num_contexts, 1) + 0.3 * normal(1, num_items) + taste + noise
    return watch_ratio_world(
        log_watch_ratio.exp(),
        tuple(map(str, range(num_contexts))),
        tuple(map(str, range(num_items))),
        f"simulator with KuaiRec's shape and marginals (no --data given), world seed {seed}: "
        f"{num_contexts} users x {num_items} videos",
        f"generated, seed {seed}, {num_contexts} x {num_items}",
    )


def ids_of(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The original user and video ids, as strings."""
    return tuple(map(str, arrays["user_id"].tolist())), tuple(map(str, arrays["video_id"].tolist()))


def unpack(bits: np.ndarray, num_items: int) -> np.ndarray:
    """Rows of packed bits as (C, N) of 0 and 1."""
    return np.unpackbits(bits, axis=1)[:, :num_items]
