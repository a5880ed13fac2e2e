"""The vocabulary of a feature: which rows of its table the values of a cell, or of a request, are."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from esr_trainer.hashed_text import HashedText


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
    return {
        name: HashedText.model_validate(one) if isinstance(one, dict) else Categories(one)
        for name, one in content.items()
    }
