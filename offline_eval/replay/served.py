"""What a checkpoint's bundle serves, beside what the checkpoint was trained to pick: the train/serve skew.

Axes: B batch, C contexts, M experts, N items, K candidates.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.policy_value import CHUNK
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.world import World
from offline_eval.intervals import Estimate, bootstrap
from offline_eval.replay.list_measures import share_found
from serving.bundle import MANIFEST, published_versions
from serving.errors import ServingError
from serving.export import export
from serving.export_check import best_items, greedy_regret, logits_of, num_checked
from serving.query import Query
from serving.retriever import Retriever


class Served(NamedTuple):
    """How a bundle's answers differ from the checkpoint's."""

    model_id: str
    """Estimator and start of the SHA-256 of the checkpoint that the bundle says it was exported from."""
    index_kind: str
    """Flat is exact."""
    policy_value: Estimate
    """Of what it serves."""
    skew: Estimate
    """Served minus trained, paired."""
    moved: float
    """Share of the positions that hold another item than the trained policy's."""
    recall: float
    """Share of the trained policy's candidates that are served: recall@K."""
    regret: float | None
    """The largest float64 logit that a position of a changed list gives away; None for an approximate index."""


def open_run(path: Path) -> Checkpoint:
    """Open a run or checkpoint directory.

    Raises:
        UsageError: it is not there, is a bundle, or is no whole checkpoint.
    """
    if not path.exists():
        raise UsageError(f"run ({path}) is not there")
    if (path / MANIFEST).is_file() or published_versions(path):
        raise UsageError(f"run ({path}) is a bundle: name the run it was exported from, and the bundle with --bundle")
    return Checkpoint(path)


def open_bundle(path: Path) -> Retriever:
    """Open a bundle, or the highest version of a bundle root.

    Raises:
        UsageError: it is not there, or cannot be served.
    """
    if not path.is_dir():
        raise UsageError(f"bundle ({path}) is not there")
    path = path.resolve()
    try:
        is_version = (path / MANIFEST).is_file() and path.name.isdecimal()
        return Retriever.open(path.parent, int(path.name)) if is_version else Retriever.open(path)
    except ServingError as error:
        raise UsageError(f"bundle ({path}): {error}") from error


def exported(run: Path) -> Retriever:
    """What `python -m serving export` publishes of a run; an approximate index is judged here, not refused there.

    Raises:
        UsageError: the export refuses.
    """
    with TemporaryDirectory() as root:
        export(run, Path(root), min_recall=0)
        return open_bundle(Path(root))


def served_candidates(retriever: Retriever, world: World, num_candidates: int) -> Tensor:
    """The greedy candidates of every context of a world, asked for by its id: (C, K).

    Raises:
        UsageError: the bundle does not know a context, or serves what the world does not have.
    """
    row_of = {item_id: row for row, item_id in enumerate(world.item_ids)}
    rows = np.empty((world.num_contexts, num_candidates), np.int64)
    for start in range(0, world.num_contexts, CHUNK):
        ids = world.context_ids[start : start + CHUNK]
        answers = retriever.answer([Query(context_id, num_candidates) for context_id in ids])
        for place, answer in enumerate(answers, start):
            if isinstance(answer, ServingError):
                raise UsageError(f"bundle of another world: {answer}")
            try:
                rows[place] = [row_of[item_id] for item_id in answer.item_ids]
            except KeyError as error:
                raise UsageError(f"bundle of another world: it serves the item {error}, which is not here") from error
    return torch.from_numpy(rows)


@torch.no_grad()
def largest_regret(policy: EarlyStageRanker, trained: Tensor, served: Tensor) -> float:
    """How far a served item's float64 logit is below the best that its expert could have taken there, at most.

    Only lists that differ are looked at: where torch picked the same, what is served is what was trained.

    Args:
        policy: the trained ESR.
        trained: its greedy candidates, (C, K).
        served: (C, K).
    """
    differing = (trained != served).any(dim=1).nonzero()[:, 0]
    regrets = []
    for rows in torch.split(differing, min(CHUNK, num_checked(policy))) if len(differing) else ():
        picked = logits_of(policy, rows, served[rows])
        best = best_items(policy, rows, served.shape[1])
        regrets.append(float(greedy_regret(best, picked, served[rows]).max()))
    return max(regrets, default=0.0)


def serving_skew(
    retriever: Retriever,
    policy: EarlyStageRanker,
    lists: tuple[Tensor, Tensor],
    values: tuple[np.ndarray, np.ndarray],
) -> Served:
    """Say how what is served differs from what was trained.

    Args:
        retriever: the opened bundle.
        policy: the trained ESR.
        lists: trained and served candidates, (C, K) each.
        values: trained and served values of every context, (C,) each.
    """
    (trained, served), (trained_values, served_values) = lists, values
    manifest = retriever.bundle.manifest
    return Served(
        model_id=manifest.model_id,
        index_kind=manifest.index,
        policy_value=bootstrap(served_values),
        skew=bootstrap(served_values - trained_values),
        moved=float((trained != served).double().mean()),
        recall=float(share_found(trained, served).mean()),
        regret=largest_regret(policy, trained, served) if retriever.bundle.index.is_exact else None,
    )
