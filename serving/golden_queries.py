"""Golden queries: what the exported model answered, which a loaded bundle must answer too.

Axes: Q queries, K candidates.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from esr_trainer.quotas import quotas
from serving.errors import BundleCorruptError
from serving.index import Picked

SCORE_TOLERANCE = 1e-3
"""How far a golden query's scores may be from the exporting machine's, relative to the largest."""
SWAPPED = 0.02
"""Share of the golden queries' items that may differ: items whose scores tie can swap on another processor."""
ROWS = 1 << 40
"""More than an index has rows: (query, row) pairs as one number."""


def write_golden_answers(path: Path, contexts: np.ndarray, answers: Sequence[Picked]) -> None:
    """Write an exact index's answers to some contexts, (Q,)."""
    candidates, scores = (np.stack(parts) for parts in list(zip(*answers, strict=True))[:2])
    np.savez(path, allow_pickle=False, contexts=contexts, candidates=candidates, scores=scores)


def check_answers(picked: Sequence[Picked], golden: Mapping[str, np.ndarray], num_experts: int, recall: float) -> None:
    """Compare answers with the golden ones; an approximate index may miss what it missed when it was measured.

    An item's score is compared where the same expert picked it: an item that one expert missed may go to another.

    Args:
        picked: Q.
        golden: candidates (Q, K), scores (Q, K).
        num_experts: M.
        recall: of the index, as the manifest says.

    Raises:
        BundleCorruptError: more items or larger scores differ than recall, ties and rounding explain.
    """
    candidates, scores = golden["candidates"], golden["scores"]
    expert = np.broadcast_to(np.repeat(np.arange(num_experts), quotas(candidates.shape[1], num_experts)), scores.shape)
    sizes = [len(found.rows) for found in picked]
    query_of = np.repeat(np.arange(len(picked)), sizes)
    rows, found_scores, found_experts = (np.concatenate(parts) for parts in zip(*picked, strict=True))
    # all queries at once: a loop over them would hold Python's lock for milliseconds, while requests wait
    expected = (np.arange(len(candidates))[:, None] * ROWS + candidates).ravel()
    _, ours, theirs = np.intersect1d(query_of * ROWS + rows, expected, assume_unique=True, return_indices=True)
    other = 1 - len(theirs) / candidates.size
    if other > SWAPPED + 1 - recall:
        raise BundleCorruptError(f"golden queries are answered otherwise: {other:.0%} of the items differ")
    tolerance = SCORE_TOLERANCE * max(1.0, float(np.abs(scores).max()))
    compared = found_experts[ours] == expert.ravel()[theirs]
    worst = float(np.abs(found_scores[ours] - scores.ravel()[theirs])[compared].max(initial=0))
    if not worst <= tolerance:
        raise BundleCorruptError(f"golden queries are answered otherwise: scores differ by up to {worst:.2g}")
