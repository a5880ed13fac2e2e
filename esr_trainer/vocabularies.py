"""The vocabulary of a feature: which rows of its table the values of a cell, or of a request, are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from esr_trainer.hashed_text import HashedText

ENCODED = "encoded-text"
"""What tells an EncodedText in JSON."""


class Vocabulary(Protocol):
    """Values -> indices of a table's rows."""

    def __len__(self) -> int:
        """V, the rows of the table."""

    def indices(self, values: Sequence[str]) -> list[int]:
        """The bag of some values: distinct indices, without values that the model does not know."""

    def to_json(self) -> Any:
        """For JSON."""


class Categories(tuple[str, ...]):
    """The values of a categorical feature, each at its index."""

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {value: index for index, value in enumerate(self)}

    def indices(self, values: Sequence[str]) -> list[int]:
        """The indices of the values that are known, each once, in their order."""
        return [self._index_of[value] for value in dict.fromkeys(values) if value in self._index_of]

    def to_json(self) -> list[str]:
        """The values, in the order of their indices."""
        return list(self)


@dataclass(frozen=True)
class EncodedText:
    """The distinct texts of a feature, each of which an encoder made a vector of; other texts are not known."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {text: index for index, text in enumerate(self.texts)}

    def indices(self, values: Sequence[str]) -> list[int]:
        """The index of the values as one text, if it is known."""
        index = self._index_of.get(" ".join(values).strip())
        return [] if index is None else [index]

    def to_json(self) -> dict[str, Any]:
        """The texts, in the order of their indices."""
        return {"kind": ENCODED, "texts": list(self.texts)}


def encoded_text(rows: Sequence[Sequence[str]]) -> EncodedText:
    """The distinct texts of rows of texts, but for empty ones."""
    return EncodedText(tuple(sorted({" ".join(row).strip() for row in rows} - {""})))


def padded(bags: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Bags of indices, at most `width` each, as one array: (C, width) int64, padded with -1."""
    array = np.full((len(bags), width), -1, dtype=np.int64)
    for row, bag in enumerate(bags):
        array[row, : len(bag)] = bag
    return array


def vocabularies_to_json(vocabularies: Mapping[str, Vocabulary]) -> dict[str, Any]:
    """For JSON: feature -> its values, or, for text, an object whose `kind` says how it is hashed."""
    return {name: vocabulary.to_json() for name, vocabulary in vocabularies.items()}


def vocabularies_of_json(content: Mapping[str, Any]) -> dict[str, Vocabulary]:
    """What `vocabularies_to_json` wrote, decoded.

    Raises:
        ValueError: a feature has a vocabulary of no known kind.
    """
    return {name: vocabulary_of_json(one) for name, one in content.items()}


def vocabulary_of_json(content: Any) -> Vocabulary:
    """One feature's, decoded."""
    if not isinstance(content, dict):
        return Categories(content)
    if content.get("kind") == ENCODED:
        return EncodedText(tuple(content["texts"]))
    return HashedText.model_validate(content)
