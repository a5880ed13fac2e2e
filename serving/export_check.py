"""The check before a bundle is published: what torch picks, and what ONNX Runtime and FAISS do, is the policy's.

Axes: B batch, M experts, N items, K candidates.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.policy import greedy_candidates
from esr_trainer.quotas import expert_of_position
from esr_trainer.towers import EarlyStageRanker, Tower
from serving import bundle
from serving.export_tower import ExportedTower
from serving.retriever import Retriever

NUM_CHECKED = 512
"""Contexts whose candidates are compared before a bundle is published, spread evenly."""
CHECKED_LOGITS = 50_000_000
"""The most logits that the comparison holds, in float64."""
CHUNK = 4096
"""Rows that a tower embeds at once in float64: the rows of a long text's n-grams are many numbers."""
TIE = 1e-5
"""Items whose float64 logits differ by less may swap."""


def check_served_is_trained(directory: Path, version: int, policy: EarlyStageRanker, num_candidates: int) -> None:
    """Check that torch's greedy candidates and those of ONNX Runtime and FAISS are both greedy in float64.

    Raises:
        UsageError: a position holds an item whose logit is more than TIE below the best one that was free.
    """
    retriever = Retriever(bundle.load_bundle(directory, version))
    retriever.check_golden_queries()
    manifest = retriever.bundle.manifest
    most = CHECKED_LOGITS // (manifest.num_experts * manifest.num_items)
    rows = spread(manifest.num_contexts, max(1, min(NUM_CHECKED, most)))
    checked = {"torch": greedy_candidates(policy(rows), num_candidates)}
    if retriever.bundle.index.is_exact:  # what another kind misses was measured
        served = retriever.bundle.index.pick(retriever.contexts.embed(rows.numpy()), num_candidates)
        checked["ONNX Runtime and FAISS"] = torch.from_numpy(np.stack([one.rows for one in served]))
    logits = float64_logits(policy, rows)
    for name, candidates in checked.items():
        regret = float(greedy_regret(logits, candidates).max())
        if regret > TIE:
            raise UsageError(
                f"export: candidates of {name} are not the policy's: a logit is {regret:.2g} below the best"
            )


def float64_logits(policy: EarlyStageRanker, rows: Tensor) -> Tensor:
    """A policy's logits in float64, which torchrec's pooling cannot: (B,) -> (B, M, N)."""

    def embed(tower: Tower, rows: Tensor) -> Tensor:
        exact = ExportedTower(tower).double()
        bags = [torch.from_numpy(bags) for bags in tower.features.bags.values()]
        return torch.cat([exact(*(bag[chunk] for bag in bags)) for chunk in torch.split(rows, CHUNK)])

    items = embed(policy.item_tower, torch.arange(len(policy.item_tower.features.ids)))
    return torch.einsum("bmd,nmd->bmn", embed(policy.context_tower, rows), items) / policy.temperature


def greedy_regret(logits: Tensor, candidates: Tensor) -> Tensor:
    """How far each position's item is below the best item that its expert could have taken there.

    Args:
        logits: (B, M, N), float64.
        candidates: (B, K), distinct items.

    Returns:
        (B, K), 0 where the pick is greedy.
    """
    logits = logits.detach().clone()
    regret = torch.empty(candidates.shape, dtype=logits.dtype)
    for position, expert in enumerate(expert_of_position(candidates.shape[1], logits.shape[1])):
        item = candidates[:, position, None]
        regret[:, position] = logits[:, expert].amax(dim=1) - logits[:, expert].gather(1, item)[:, 0]
        logits.scatter_(2, item[:, None].expand(-1, logits.shape[1], -1), -torch.inf)
    return regret


def spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` rows, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).long()
