"""The retriever: from a context to its candidates, as the trained policy picks or draws them.

No gRPC and no torch in here. Axes: B batch, M experts, N items, D embedding dimension, K candidates.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from esr_trainer.quotas import expert_of_position
from serving.bundle import Bundle, latest_version, load_bundle
from serving.contexts import Contexts, Found, UnknownContext
from serving.errors import InvalidRequestError, ServingError, UnsupportedError
from serving.golden_queries import check_answers
from serving.index import Picked
from serving.query import Answer, Degradation, Query
from serving.sampling import draw
from serving.selection import EVERYTHING, Selection

SEEDS = 1 << 64


class Checked(NamedTuple):
    """A query whose fields keep their rules."""

    query: Query
    num_candidates: int
    """As asked, or as many as may come back."""
    context: Found
    selection: Selection
    """Rows that may come back."""


class Drawn(NamedTuple):
    """What an answer to a draw says beside its candidates."""

    inclusion_propensities: Sequence[float] = ()
    log_probability: float = 0.0


class Retriever:
    """A loaded bundle that answers."""

    def __init__(self, bundle: Bundle, unknown_context: UnknownContext = "not-found") -> None:
        self.bundle = bundle
        self.contexts = Contexts(bundle, unknown_context)
        self._item_ids = np.array(bundle.item_ids, dtype=object)  # a take of it is faster than a loop
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
        query = Query(query) if isinstance(query, str) else query
        query = query if num_candidates is None else query._replace(num_candidates=num_candidates)
        (answer,) = self.answer([query])
        if isinstance(answer, ServingError):
            raise answer
        return answer

    def answer(self, queries: Sequence[Query]) -> list[Answer | ServingError]:
        """Answer many queries: known contexts are embedded together, searches of the same K are made together."""
        results: list[Answer | ServingError] = []
        checked: list[Checked] = []
        for query in queries:
            try:
                checked.append(self.check(query))
                results.append(Answer([], [], []))
            except ServingError as error:
                results.append(error)
        places = [place for place, result in enumerate(results) if not isinstance(result, ServingError)]
        for place, one, (picked, drawn) in zip(places, checked, self.pick(checked), strict=True):
            try:
                results[place] = self.complete(one, picked, drawn)
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
        selection = self.selection_of(query)
        return Checked(query, min(k, selection.allows(manifest.num_items)), self.contexts.find(query), selection)

    def selection_of(self, query: Query) -> Selection:
        """The rows that may come back."""
        if query.allowed is None and not query.excluded:
            return EVERYTHING
        return Selection.of(
            None if query.allowed is None else self.rows_of(query.allowed), self.rows_of(query.excluded)
        )

    def rows_of(self, item_ids: Sequence[str]) -> list[int]:
        """The rows of the items that the model knows."""
        return [row for item_id in item_ids if (row := self._item_row_of.get(item_id)) is not None]

    def pick(self, checked: Sequence[Checked]) -> list[tuple[Picked, Drawn]]:
        """Pick or draw the candidates of every query; those that want as many are searched for together."""
        if not checked:
            return []
        embeddings = self.contexts.embed_found([one.context for one in checked])
        picked: dict[int, tuple[Picked, Drawn]] = {}
        together = defaultdict(list)
        for place, one in enumerate(checked):
            if not one.num_candidates:
                picked[place] = Picked(*np.empty((3, 0), np.int64)), Drawn()
            elif one.query.seed is None:
                together[one.num_candidates].append(place)
            else:
                picked[place] = self.draw(embeddings[place], one, one.query.seed)
        for k, places in together.items():
            found = self.bundle.index.pick(embeddings[places], k, [checked[place].selection for place in places])
            picked |= {place: (one, Drawn()) for place, one in zip(places, found, strict=True)}
        return [picked[place] for place in range(len(checked))]

    def draw(self, embedding: np.ndarray, one: Checked, seed: int) -> tuple[Picked, Drawn]:
        """Draw one context's candidates, (M, D), among the items that may come back."""
        rows = one.selection.rows(self.bundle.manifest.num_items)
        logits = np.stack([self.bundle.index.scores(vector, expert)[rows] for expert, vector in enumerate(embedding)])
        k = one.num_candidates
        experts = np.array(expert_of_position(k, len(logits)))
        items, inclusion, log_probability = draw(logits, k, seed)
        return Picked(rows[items], logits[experts, items], experts), Drawn(inclusion.tolist(), log_probability)

    def complete(self, one: Checked, picked: Picked, drawn: Drawn) -> Answer:
        """Put ids to rows, and the late-stage ranker's slate to the candidates."""
        degradations = [] if one.context.is_known else [Degradation.COLD_START]
        slate: list[int] = []
        if one.query.num_slots:
            slate = self.order(one, picked).tolist()[: one.query.num_slots]
            if not self.is_ranked(one):
                degradations.append(Degradation.UNRANKED)
        return Answer(
            item_ids=self._item_ids[picked.rows].tolist(),
            scores=picked.scores.tolist(),
            experts=picked.experts.tolist(),
            inclusion_propensities=drawn.inclusion_propensities,
            log_probability=drawn.log_probability,
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
            BundleCorruptError: more items or larger scores differ than recall, ties and rounding explain.
        """
        golden, manifest = self.bundle.golden, self.bundle.manifest
        picked = self.bundle.index.pick(self.contexts.embed(golden["contexts"]), manifest.num_candidates)
        check_answers(picked, golden, manifest.num_experts, manifest.recall)
