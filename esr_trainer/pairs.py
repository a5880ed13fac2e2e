"""Pairs of a context and an item as a judge is told of them: ids and texts, without rows or tensors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer.command_line import UsageError
from esr_trainer.features import matched_rows, texts_of


class Described(NamedTuple):
    """A context or an item."""

    id: str
    """The data's own."""
    texts: Mapping[str, str]
    """Column -> what a table says of it; without what it does not say."""


class Pair(NamedTuple):
    """What one judgement is about."""

    context: Described
    item: Described

    def to_json(self) -> dict[str, dict[str, str | Mapping[str, str]]]:
        """For JSON: {"context": {"id": ..., "texts": {column: text}}, "item": the same}."""
        return {name: {"id": one.id, "texts": one.texts} for name, one in zip(self._fields, self, strict=True)}


class Descriptions(NamedTuple):
    """What a judge is told of a world's rows."""

    contexts: Sequence[Described]
    """C."""
    items: Sequence[Described]
    """N."""


def describe(ids: Sequence[str], path: Path | None) -> list[Described]:
    """Ids with every column of a table of features, as it is written there: C of them.

    Args:
        ids: the rows' ids, C.
        path: a file as for `read_features`; None for ids alone.

    Raises:
        UsageError: the file cannot be used.
    """
    if path is None:
        return [Described(one, {}) for one in ids]
    table, rows = matched_rows(ids, path)
    columns = {name: [", ".join(texts_of(cell)) for cell in table[name].to_list()] for name in table.columns[1:]}
    return [
        Described(one, {name: texts[row] for name, texts in columns.items() if row is not None and texts[row]})
        for one, row in zip(ids, rows, strict=True)
    ]


def ask_once(judge: Callable[[Sequence[Pair]], Sequence[float]], pairs: Sequence[Pair]) -> list[float]:
    """A judge's answers, each distinct pair of ids asked once."""
    place: dict[tuple[str, str], int] = {}
    distinct: list[Pair] = []
    for pair in pairs:
        if place.setdefault((pair.context.id, pair.item.id), len(distinct)) == len(distinct):
            distinct.append(pair)
    answers = judge(distinct)
    return [float(answers[place[pair.context.id, pair.item.id]]) for pair in pairs]


def checked(answers: object, count: int, oracle: str) -> list[float]:
    """Answers as `count` numbers.

    Raises:
        UsageError: they are not `count` numbers from 0 to 1.
    """
    try:
        values = np.asarray(answers, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"oracle ({oracle}) gave no list of numbers") from error
    if values.shape != (count,):
        raise UsageError(f"oracle ({oracle}) gave an answer of shape {values.shape} for {count} pairs")
    check_range(values, oracle)
    return [float(value) for value in values]


def check_range(values: np.ndarray, oracle: str) -> None:
    """Refuse what is no relevance.

    Raises:
        UsageError: a value is below 0, above 1 or not a number.
    """
    wrong = values[~((values >= 0) & (values <= 1))]
    if len(wrong):
        raise UsageError(f"oracle ({oracle}) gave {wrong[0]:g}: relevance must be from 0 to 1")
