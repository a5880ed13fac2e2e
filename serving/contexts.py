"""The contexts of a bundle: how a query names one, and the user tower's embedding of it.

Axes: B batch, C contexts, M experts, D embedding dimension, P values of a feature.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from esr_trainer.vocabularies import padded
from serving.bundle import Bundle
from serving.errors import InvalidRequestError, UnknownContextError, quoted
from serving.query import Query

AVERAGED = 4096
"""Contexts whose mean embedding answers for an unknown one, evenly spread."""
KEPT_BYTES = 1 << 28
"""Embeddings of all contexts are kept if they are no larger: looking one up costs a tenth of running the tower."""
LARGEST = 1e12
"""Largest number of a given embedding: its scores stay finite in float32 whatever the items' are, up to 1e24."""
CHUNK = 4096
"""Contexts that the tower embeds at once."""

UnknownContext = Literal["not-found", "cold-start"]
"""What an unknown context gets: NOT_FOUND, or the answer for the average of the model's contexts."""


class Found(NamedTuple):
    """What is known of a query's context; exactly one field is set, none if the context is unknown."""

    row: int | None = None
    """Its row in the bundle."""
    bags: dict[str, np.ndarray] | None = None
    """The user tower's inputs, each (P,)."""
    embedding: np.ndarray | None = None
    """The user tower's output, (M * D,)."""

    @property
    def is_known(self) -> bool:
        """Whether the model knows anything of it."""
        return self.row is not None or self.bags is not None or self.embedding is not None


class Contexts:
    """Finds contexts and embeds them."""

    def __init__(self, bundle: Bundle, unknown_context: UnknownContext) -> None:
        self.bundle = bundle
        self.unknown_context = unknown_context
        self._row_of = {context_id: row for row, context_id in enumerate(bundle.context_ids)}
        count, manifest = len(bundle.context_ids), bundle.manifest
        self._kept: np.ndarray | None = None
        if 4 * count * manifest.num_experts * manifest.embedding_dim <= KEPT_BYTES:
            chunks = np.array_split(np.arange(count), -(-count // CHUNK))
            self._kept = np.concatenate([self.embed(rows) for rows in chunks])
        self._average = self.embed(np.linspace(0, count - 1, min(count, AVERAGED)).astype(np.int64)).mean(axis=0)

    def find(self, query: Query) -> Found:
        """What is known of a query's context.

        Raises:
            InvalidRequestError: no context is given or more than one, or it breaks a rule.
            UnknownContextError: nothing is known of it, and no cold-start answer is wanted.
        """
        given = bool(query.context_id) + (query.features is not None) + (query.embedding is not None)
        if given != 1:
            raise InvalidRequestError(
                "context", f"({given} given) must be exactly one of context_id, features, embedding"
            )
        if query.embedding is not None:
            return Found(embedding=self._checked(query.embedding))
        if query.features is not None:
            bags = self._bags(query.features)
            found = Found(bags=bags) if any(bool((bag >= 0).any()) for bag in bags.values()) else Found()
        else:
            found = Found(row=self._row_of.get(query.context_id))
        if not found.is_known and self.unknown_context == "not-found":
            name = f"context_id ({quoted(query.context_id)})" if query.context_id else "features: none of the values"
            raise UnknownContextError(f"{name} is not among the model's contexts")
        return found

    def _checked(self, embedding: np.ndarray) -> np.ndarray:
        size = self.bundle.manifest.num_experts * self.bundle.manifest.embedding_dim
        if embedding.shape != (size,):
            raise InvalidRequestError("embedding", f"({embedding.size} values) must have M * D = {size}")
        largest = float(np.abs(embedding).max())
        if not largest <= LARGEST:  # nan included
            raise InvalidRequestError("embedding", f"({largest:g}) must be finite, no number larger than {LARGEST:g}")
        return embedding

    def _bags(self, features: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        bags = {name: np.full(rows.shape[1], -1, np.int64) for name, rows in self.bundle.context_features.items()}
        for name, values in features.items():
            vocabulary = self.bundle.vocabularies.get(name)
            if vocabulary is None:
                names = ", ".join(self.bundle.vocabularies) or "the model has none"
                raise InvalidRequestError("features", f"({quoted(name)}) must be among the model's: {names}")
            indices, width = vocabulary.indices(values), self.bundle.widths[name]
            if width is not None and len(indices) > width:
                raise InvalidRequestError("features", f"({quoted(name)}: {len(indices)} values) takes {width}")
            bags[name] = padded([indices], width or max(1, len(indices)))[0]
        return bags

    def embed(self, rows: np.ndarray) -> np.ndarray:
        """The experts' embeddings of some contexts: rows (B,) -> (B, M, D)."""
        if self._kept is not None:
            kept: np.ndarray = self._kept[rows]
            return kept
        return self._run({name: values[rows] for name, values in self.bundle.context_features.items()})

    def embed_found(self, found: Sequence[Found]) -> np.ndarray:
        """The experts' embeddings of contexts that were found, or of the average where nothing is known: (B, M, D)."""
        rows = [one.row for one in found if one.row is not None]
        if len(rows) == len(found):
            return self.embed(np.array(rows))
        result = np.empty((len(found), *self._average.shape), np.float32)
        if rows:
            known = [place for place, one in enumerate(found) if one.row is not None]
            result[known] = self.embed(np.array(rows))
        for place, one in enumerate(found):
            if one.bags is not None:
                result[place] = self._run({name: bag[None] for name, bag in one.bags.items()})[0]
            elif one.embedding is not None:
                result[place] = one.embedding.reshape(self._average.shape)
            elif one.row is None:
                result[place] = self._average
        return result

    def _run(self, bags: dict[str, np.ndarray]) -> np.ndarray:
        embeddings: np.ndarray = self.bundle.user_tower.run(None, bags)[0]
        return embeddings
