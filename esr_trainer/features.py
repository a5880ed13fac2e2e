"""What a tower knows of a context or an item: its id, and optionally categorical and multi-valued features.

Every feature is a bag of vocabulary indices per row, padded with -1; the id is a bag of one. Axes: C rows, P the most
values a row has.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer.command_line import UsageError, note
from esr_trainer.table_files import read_table

ID = "id"
"""The feature that every row has."""

RESERVED = {ID, "file", "allow_pickle"}
"""Names of the id itself, and of numpy's own arguments where the bags are saved."""

MAX_VALUES = 500
"""A column with more distinct values than this is a number or free text, not a category."""


class Features(NamedTuple):
    """The rows' ids and features; the id comes first."""

    vocabularies: dict[str, tuple[str, ...]]
    """Feature -> value of each index; of the feature `id`, the data's own id of each row."""
    bags: dict[str, np.ndarray]
    """Feature -> indices, (C, P) int64; -1 pads."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The data's own ids, C."""
        return self.vocabularies[ID]


def id_features(ids: Sequence[str]) -> Features:
    """Ids alone: row c holds index c."""
    return Features({ID: tuple(ids)}, {ID: np.arange(len(ids))[:, None]})


def read_features(ids: Sequence[str], path: Path) -> Features:
    """Ids with the columns of a CSV or Parquet file as features.

    The file's first column holds ids; a row without features keeps empty bags. A value such as "[27, 9]" is
    multi-valued. A column with more than MAX_VALUES distinct values is left out, with a note.

    Args:
        ids: the rows' ids, C.
        path: a file with named columns, such as KuaiRec's user_features.csv or item_categories.csv.

    Raises:
        UsageError: the file cannot be read, repeats an id, or knows none of the ids.
    """
    table = read_table(path, "features")
    keys = table[:, 0].to_list()
    if len(set(keys)) < len(keys):
        raise UsageError(f"features ({path}): column {table.columns[0]} repeats an id")
    row_of = {key: row for row, key in enumerate(keys)}
    rows = [row_of.get(key) for key in ids]
    if all(row is None for row in rows):
        raise UsageError(f"features ({path}): column {table.columns[0]} holds none of the {len(rows)} ids of the data")
    features = id_features(ids)
    if reserved := RESERVED & set(table.columns[1:]):
        raise UsageError(f"features ({path}): no column after the first may be called {', '.join(sorted(reserved))}")
    for name in table.columns[1:]:
        column = table[name].to_list()
        values = [split_values(column[row]) if row is not None else [] for row in rows]
        vocabulary = tuple(sorted({value for row in values for value in row}))
        if len(vocabulary) > MAX_VALUES:
            note(f"feature {name} of {path.name} left out: {len(vocabulary)} distinct values (at most {MAX_VALUES})")
        elif vocabulary:
            features.vocabularies[name] = vocabulary
            features.bags[name] = pad(values, vocabulary, max(map(len, values)))
    return features


def split_values(cell: str | list[str | None] | None) -> list[str]:
    """One cell's values: a list's, or those of its text: "[27, 9]" holds two, an empty cell none."""
    if isinstance(cell, list):
        return [value for value in cell if value is not None]
    if cell is None or not cell.strip():
        return []
    if cell.startswith("[") and cell.endswith("]"):
        return [value.strip() for value in cell[1:-1].split(",") if value.strip()]
    return [cell]


def pad(values: Sequence[Sequence[str]], vocabulary: Sequence[str], width: int) -> np.ndarray:
    """Vocabulary indices of each row's values, at most `width` of them: (C, width), padded with -1."""
    index = {value: position for position, value in enumerate(vocabulary)}
    bags = np.full((len(values), width), -1, dtype=np.int64)
    for row, row_values in enumerate(values):
        bags[row, : len(row_values)] = [index[value] for value in row_values]
    return bags


def save_features(features: Features, directory: Path, side: str) -> None:
    """Write `<side>_vocabularies.json` and `<side>_features.npz`."""
    (directory / f"{side}_vocabularies.json").write_text(json.dumps(features.vocabularies))
    np.savez_compressed(directory / f"{side}_features.npz", allow_pickle=False, **features.bags)


def load_features(directory: Path, side: str) -> Features:
    """Read what `save_features` wrote."""
    vocabularies = json.loads((directory / f"{side}_vocabularies.json").read_text())
    with np.load(directory / f"{side}_features.npz", allow_pickle=False) as bags:
        return Features(
            {name: tuple(values) for name, values in vocabularies.items()}, {name: bags[name] for name in vocabularies}
        )
