"""The check before a bundle is published: what torch picks, and what ONNX Runtime and FAISS do, is the policy's.

The catalogue goes by in float64 some items at a time, so that the check holds no table and no logits of all items.

Axes: B batch, M experts, N items, D embedding dimension, K candidates, J items at hand.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.policy import greedy_candidates
from esr_trainer.quotas import expert_of_position
from esr_trainer.towers import EarlyStageRanker, Tower
from serving import bundle
from serving.retriever import Retriever

NUM_CHECKED = 512
"""Contexts whose candidates are compared before a bundle is published, spread evenly."""
CHECKED_LOGITS = 50_000_000
"""The most logits that the comparison works out."""
CHUNK = 4096
"""Items at hand."""
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
    rows = spread(manifest.num_contexts, min(NUM_CHECKED, num_checked(policy)))
    checked = {"torch": greedy_candidates(policy(rows), num_candidates)}
    if retriever.bundle.index.is_exact:  # what another kind misses was measured
        served = retriever.bundle.index.pick(retriever.contexts.embed(rows.numpy()), num_candidates)
        checked["ONNX Runtime and FAISS"] = torch.from_numpy(np.stack([one.rows for one in served]))
    best = best_items(policy, rows, num_candidates)
    for name, candidates in checked.items():
        regret = float(greedy_regret(best, logits_of(policy, rows, candidates), candidates).max())
        if regret > TIE:
            raise UsageError(
                f"export: candidates of {name} are not the policy's: a logit is {regret:.2g} below the best"
            )


def num_checked(policy: EarlyStageRanker) -> int:
    """Contexts of CHECKED_LOGITS, at least one."""
    tower = policy.item_tower
    return max(1, CHECKED_LOGITS // (tower.shape[1] * len(tower.features.ids)))


class Best(NamedTuple):
    """Each expert's best items, (B, M, K) each."""

    logits: Tensor
    """float64."""
    items: Tensor


def best_items(policy: EarlyStageRanker, contexts: Tensor, num_candidates: int) -> Best:
    """Each expert's best K of the catalogue, (B,) -> (B, M, K): enough, whatever K - 1 items other positions took."""
    queries = in_float64(policy.context_tower, contexts) / policy.temperature
    best = Best(queries[..., :0], contexts.new_empty((*queries.shape[:2], 0)))
    for chunk in torch.split(torch.arange(len(policy.item_tower.features.ids)), CHUNK):
        logits = torch.einsum("bmd,nmd->bmn", queries, in_float64(policy.item_tower, chunk))
        logits = torch.cat([best.logits, logits], dim=2)
        items = torch.cat([best.items, chunk.expand(*queries.shape[:2], -1)], dim=2)
        first = logits.topk(min(num_candidates, logits.shape[2]))
        best = Best(first.values, items.gather(2, first.indices))
    return best


def logits_of(policy: EarlyStageRanker, contexts: Tensor, candidates: Tensor) -> Tensor:
    """The float64 logits of candidates, each its own position's expert's: (B,), (B, K) -> (B, K)."""
    expert = expert_of_position(candidates.shape[1], policy.item_tower.shape[1])
    queries = in_float64(policy.context_tower, contexts)[:, expert] / policy.temperature  # (B, K, D)
    items = in_float64(policy.item_tower, candidates.flatten())[
        torch.arange(candidates.numel()), expert * len(candidates)
    ]
    logits: Tensor = torch.linalg.vecdot(queries, items.view_as(queries))
    return logits


def in_float64(tower: Tower, rows: Tensor) -> Tensor:
    """Embeddings of rows, pooled in float64, which torchrec's pooling cannot: (B,) -> (B, M, D)."""
    total = torch.zeros((), dtype=torch.float64)
    for table, bags in zip(tower.weights().values(), tower.features.bags.values(), strict=True):
        bag = torch.from_numpy(bags)[rows]  # (B, P), -1 pads
        present = bag >= 0
        pooled = table.detach()[bag.clamp(min=0)].double().mul_(present[..., None]).sum(dim=1)
        total = total + pooled / present.sum(dim=1, keepdim=True).clamp(min=1)
    return total.view(-1, *tower.shape[1:])


def greedy_regret(best: Best, picked: Tensor, candidates: Tensor) -> Tensor:
    """How far each position's item is below the best item that its expert could have taken there.

    Args:
        best: of the catalogue.
        picked: the candidates' logits, (B, K).
        candidates: (B, K), distinct items.

    Returns:
        (B, K), 0 where the pick is greedy.
    """
    free = best.logits.clone()
    regret = torch.empty_like(picked)
    for position, expert in enumerate(expert_of_position(candidates.shape[1], free.shape[1])):
        regret[:, position] = free[:, expert].amax(dim=1) - picked[:, position]
        free[best.items == candidates[:, None, position, None]] = -torch.inf
    return regret


def spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` rows, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).long()
