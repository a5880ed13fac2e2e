"""The retriever: from a context to its candidates, as the trained policy picks or draws them.

No gRPC and no torch in here. Axes: B batch, M experts, N items, D embedding dimension, K candidates.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import faiss
import numpy as np

from esr_trainer.quotas import expert_of_position, quotas
from serving.bundle import Bundle, latest_version, load_bundle
from serving.contexts import Contexts, Found, UnknownContext
from serving.errors import BundleCorruptError, InvalidRequestError, ServingError, UnsupportedError
from serving.query import Answer, Degradation, Query
from serving.sampling import draw, greedy

SCORE_TOLERANCE = 1e-3
"""How far a golden query's scores may be from the exporting machine's, relative to the largest."""
SWAPPED = 0.02
"""Share of the golden queries' items that may differ: items whose scores tie can swap on another processor."""
SEEDS = 1 << 64


class Checked(NamedTuple):
    """A query whose fields keep their rules."""

    query: Query
    num_candidates: int
    context: Found
    items: np.ndarray | None
    """Rows that may come back, rising, or None for all."""

    @property
    def is_plain(self) -> bool:
        """Whether it can be searched together with others."""
        return self.items is None and self.query.seed is None


class Picked(NamedTuple):
    """One context's candidates as rows."""

    rows: np.ndarray
    """(K,)."""
    scores: np.ndarray
    """(K,)."""
    experts: list[int]
    inclusion_propensities: Sequence[float] = ()
    log_probability: float = 0.0


class Retriever:
    """A loaded bundle that answers."""

    def __init__(self, bundle: Bundle, unknown_context: UnknownContext = "not-found") -> None:
        faiss.omp_set_num_threads(1)  # holds for the calling thread: one request, one thread
        self.bundle = bundle
        self.contexts = Contexts(bundle, unknown_context)
        self._item_row_of = {item_id: row for row, item_id in enumerate(bundle.item_ids)}

    @classmethod
    def open(cls, root: str | Path, version: int | None = None, unknown_context: UnknownContext = "not-found") -> Self:
        """Load a version of a bundle root, the highest by default, and check its golden queries.

        Raises:
            BundleUnusableError: there is no such bundle, or it has another schema.
            BundleCorruptError: a file is missing or changed, or a golden query is answered otherwise.
        """
        root = Path(root)
        version = latest_version(root) if version is None else version
        retriever = cls(load_bundle(root / str(version), version), unknown_context)
        retriever.check_golden_queries()
        return retriever

    def retrieve(self, query: Query | str, num_candidates: int | None = None) -> Answer:
        """The candidates of one context; `retrieve("14", 10)` is `retrieve(Query("14", 10))`.

        Raises:
            InvalidRequestError: a field breaks its rule.
            UnknownContextError: the model has never seen the context, and no cold-start answer is wanted.
            UnsupportedError: the model cannot do what is asked.
        """
        query = Query(query, num_candidates) if isinstance(query, str) else query
        (answer,) = self.answer([query])
        if isinstance(answer, ServingError):
            raise answer
        return answer

    def answer(self, queries: Sequence[Query]) -> list[Answer | ServingError]:
        """Answer many queries: contexts are embedded together, plain searches of the same K are made together."""
        results: list[Answer | ServingError] = []
        checked: list[Checked] = []
        for query in queries:
            try:
                checked.append(self.check(query))
                results.append(Answer([], [], []))
            except ServingError as error:
                results.append(error)
        places = [place for place, result in enumerate(results) if not isinstance(result, ServingError)]
        if not checked:
            return results
        for place, one, picked in zip(places, checked, self.pick_all(checked), strict=True):
            try:
                results[place] = self.complete(one, picked)
            except ServingError as error:
                results[place] = error
        return results

    def check(self, query: Query) -> Checked:
        """Check a query's fields and find the rows of what it names."""
        manifest = self.bundle.manifest
        k = manifest.num_candidates if query.num_candidates is None else query.num_candidates
        if not 1 <= k <= manifest.num_items:
            rule = f"({k}) must be from 1 to the model's {manifest.num_items} items"
            raise InvalidRequestError("num_candidates", rule)
        if not 0 <= query.num_slots <= k:
            raise InvalidRequestError("num_slots", f"({query.num_slots}) must be from 0 to num_candidates ({k})")
        if query.num_slots and self.bundle.ranker is None:
            raise UnsupportedError(f"num_slots ({query.num_slots}): the served model has no late-stage ranker")
        if query.seed is not None and not self.bundle.index.is_exact:
            raise UnsupportedError(f"sampling needs an exact index; the served model's is {manifest.index}")
        if query.seed is not None and not 0 <= query.seed < SEEDS:
            raise InvalidRequestError("sampling.seed", f"({query.seed}) must be from 0 to 2^64 - 1")
        return Checked(query, k, self.contexts.find(query), self.rows_of(query))

    def rows_of(self, query: Query) -> np.ndarray | None:
        """The rows that may come back, rising, or None for all."""
        if query.allowed is None and not query.excluded:
            return None
        excluded = {row for item in query.excluded if (row := self._item_row_of.get(item)) is not None}
        if query.allowed is None:
            if not excluded:
                return None
            keep = np.ones(self.bundle.manifest.num_items, dtype=bool)
            keep[list(excluded)] = False
            return np.flatnonzero(keep)
        allowed = {row for item in query.allowed if (row := self._item_row_of.get(item)) is not None}
        return np.array(sorted(allowed - excluded), dtype=np.int64)

    def pick_all(self, checked: Sequence[Checked]) -> list[Picked]:
        """Pick or draw the candidates of every query."""
        embeddings = self.contexts.embed_found([one.context for one in checked])
        picked: dict[int, Picked] = {}
        plain = defaultdict(list)
        for place, one in enumerate(checked):
            if one.is_plain:
                plain[one.num_candidates].append(place)
            else:
                picked[place] = self.pick_among(embeddings[place], one)
        for k, places in plain.items():
            rows, scores, experts = self.pick(embeddings[places], k)
            for number, place in enumerate(places):
                picked[place] = Picked(rows[number], scores[number], experts)
        return [picked[place] for place in range(len(checked))]

    def pick(self, embeddings: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Expert by expert, each its quota of the best items that no earlier expert took.

        An expert's first K_1 + ... + K_m items are enough: at most K_1 + ... + K_{m-1} of them are taken.

        Args:
            embeddings: (B, M, D).
            num_candidates: K.

        Returns:
            Item rows (B, K), scores (B, K), and the expert of each position (K,).
        """
        batch, num_experts, _ = embeddings.shape
        rows = np.empty((batch, num_candidates), np.int64)
        scores = np.empty((batch, num_candidates), np.float32)
        start = 0
        for expert, quota in enumerate(quotas(num_candidates, num_experts)):
            if not quota:
                break
            end = start + quota
            best, best_scores = self.bundle.index.search(np.ascontiguousarray(embeddings[:, expert]), expert, end)
            for query in range(batch if start else 0):
                free = np.flatnonzero(~np.isin(best[query], rows[query, :start]))[:quota]
                best[query, :quota] = best[query, free]
                best_scores[query, :quota] = best_scores[query, free]
            rows[:, start:end] = best[:, :quota]
            scores[:, start:end] = best_scores[:, :quota]
            start = end
        return rows, scores, expert_of_position(num_candidates, num_experts)

    def pick_among(self, embedding: np.ndarray, one: Checked) -> Picked:
        """Pick or draw one context's candidates among the items that may come back."""
        logits = np.stack([self.bundle.index.scores(vector, expert) for expert, vector in enumerate(embedding)])
        if one.items is not None:
            logits = logits[:, one.items]
        k = min(one.num_candidates, logits.shape[1])
        experts = expert_of_position(k, len(logits))
        if not k:
            return Picked(np.empty(0, np.int64), np.empty(0, np.float32), experts)
        if one.query.seed is None:
            items, inclusion, log_probability = greedy(logits, k), [], 0.0
        else:
            drawn = draw(logits, k, one.query.seed)
            items, log_probability = drawn.items, drawn.log_probability
            inclusion = drawn.inclusion_propensities.tolist()
        rows = items if one.items is None else one.items[items]
        return Picked(rows, logits[experts, items], experts, inclusion, log_probability)

    def complete(self, one: Checked, picked: Picked) -> Answer:
        """Put ids to rows, and the late-stage ranker's slate to the candidates."""
        names = self.bundle.item_ids
        degradations = [] if one.context.is_known else [Degradation.COLD_START]
        slate: list[int] = []
        if one.query.num_slots:
            slate = self.order(one, picked).tolist()[: one.query.num_slots]
            if not self.is_ranked(one):
                degradations.append(Degradation.UNRANKED)
        return Answer(
            item_ids=[names[row] for row in picked.rows.tolist()],
            scores=picked.scores.tolist(),
            experts=picked.experts,
            inclusion_propensities=picked.inclusion_propensities,
            log_probability=picked.log_probability,
            slate=slate,
            slate_probabilities=[1.0] * len(slate),
            degradations=degradations,
        )

    def is_ranked(self, one: Checked) -> bool:
        """Whether the late-stage ranker knows a query's context."""
        return self.bundle.ranker is not None and self.bundle.ranker.knows(one.query.context_id, one.context.row)

    def order(self, one: Checked, picked: Picked) -> np.ndarray:
        """Positions of the candidates as the late-stage ranker orders them, or as they are where it cannot: (K,)."""
        if self.bundle.ranker is None or not self.is_ranked(one) or not len(picked.rows):
            return np.arange(len(picked.rows))
        return self.bundle.ranker.order(one.query.context_id, one.context.row, picked.rows)

    def check_golden_queries(self) -> None:
        """Answer the golden queries; items and scores must be those of the model that was exported.

        Raises:
            BundleCorruptError: more items or larger scores differ than ties and rounding explain.
        """
        golden = self.bundle.golden
        expected = golden["scores"]
        rows, scores, _ = self.pick(self.contexts.embed(golden["contexts"]), expected.shape[1])
        other = float((rows != golden["candidates"]).mean())
        if other > SWAPPED:
            raise BundleCorruptError(f"golden queries are answered otherwise: {other:.0%} of the items differ")
        if not np.allclose(scores, expected, rtol=0, atol=SCORE_TOLERANCE * max(1.0, float(np.abs(expected).max()))):
            worst = float(np.abs(scores - expected).max())
            raise BundleCorruptError(f"golden queries are answered otherwise: scores differ by up to {worst:.2g}")
