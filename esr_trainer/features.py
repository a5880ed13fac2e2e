"""What a tower knows of a context or an item: its id, and optionally categories, several to a row too, and text.

Every feature is a bag of vocabulary indices per row, padded with -1; the id is a bag of one, a text one of its hashed
n-grams, or of one where an encoder reads it. Axes: C rows, P the most indices a row has, V texts, E an encoder's
dimension.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import polars as pl

from esr_trainer.command_line import UsageError, note
from esr_trainer.hashed_text import HashedText
from esr_trainer.table_files import read_table
from esr_trainer.vocabularies import Categories, Vocabulary, padded, vocabularies_of_json, vocabularies_to_json

ID = "id"
"""The feature that every row has."""

RESERVED = {ID, "file", "allow_pickle"}
"""Names of the id itself, and of numpy's own arguments where the bags are saved."""

MAX_VALUES = 500
"""A column with more distinct values than this is a number or free text, not a category."""

Texts = Sequence[Sequence[str]]
"""A column's texts, those of a row together."""


def hashed(texts: Texts) -> Vocabulary:
    """How text becomes indices unless the settings say otherwise."""
    return HashedText()


Cell = str | list[str | None] | None
"""What a table holds of a row: one text, in Parquet also a list, or nothing."""


class Features(NamedTuple):
    """The rows' ids and features; the id comes first."""

    vocabularies: dict[str, Vocabulary]
    """Feature -> what its indices are; of the feature `id`, the data's own id of each row."""
    bags: dict[str, np.ndarray]
    """Feature -> indices, (C, P) int64; -1 pads."""
    encoded: Mapping[str, np.ndarray] = MappingProxyType({})
    """Feature whose vocabulary is EncodedText -> an encoder's vector of each of its texts, (V, E) float32."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The data's own ids, C."""
        ids = self.vocabularies[ID]
        assert isinstance(ids, Categories)
        return ids


def id_features(ids: Sequence[str]) -> Features:
    """Ids alone: row c holds index c."""
    return Features({ID: Categories(ids)}, {ID: np.arange(len(ids))[:, None]})


def read_features(
    ids: Sequence[str], path: Path, text: Sequence[str] = (), read_text: Callable[[Texts], Vocabulary] = hashed
) -> Features:
    """Ids with the columns of a CSV or Parquet file as features.

    The file's first column holds ids; a row without features keeps empty bags. A value such as "[27, 9]" is
    multi-valued. A column with more than MAX_VALUES distinct values is text, or left out if they are numbers; a note
    says so.

    Args:
        ids: the rows' ids, C.
        path: a file with named columns, such as KuaiRec's user_features.csv or item_categories.csv.
        text: columns that are text however few values they have.
        read_text: a column's texts -> how they become indices.

    Raises:
        UsageError: the file cannot be read, repeats an id, or knows none of the ids.
    """
    table, rows = matched_rows(ids, path)
    features = id_features(ids)
    if reserved := RESERVED & set(table.columns[1:]):
        raise UsageError(f"features ({path}): no column after the first may be called {', '.join(sorted(reserved))}")
    for name in table.columns[1:]:
        column = table[name].to_list()
        cells = [column[row] if row is not None else None for row in rows]
        if found := read_column(f"{name} of {path.name}", cells, name in text, read_text):
            features.vocabularies[name], features.bags[name] = found
    return features


def matched_rows(ids: Sequence[str], path: Path) -> tuple[pl.DataFrame, list[int | None]]:
    """A table of features, and the row of each id in it, C; None where it has none.

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
    return table, rows


def read_column(
    name: str, cells: Sequence[Cell], is_text: bool, read_text: Callable[[Texts], Vocabulary]
) -> tuple[Vocabulary, np.ndarray] | None:
    """A feature's vocabulary and bags, (C, P); None if there is nothing in it, or nothing to learn by.

    Args:
        name: for the notes.
        cells: C.
        is_text: whether it is text however few values it has.
        read_text: a column's texts -> how they become indices.
    """
    values = [split_values(cell) for cell in cells]
    distinct = sorted({value for row in values for value in row})
    vocabulary: Vocabulary = Categories(distinct)
    if is_text or len(distinct) > MAX_VALUES:
        if not is_text and all(map(is_number, distinct)):
            note(f"feature {name} left out: {len(distinct)} distinct values (at most {MAX_VALUES})")
            return None
        if not is_text:
            note(f"feature {name} read as text: {len(distinct)} distinct values (categories have at most {MAX_VALUES})")
        values = [texts_of(cell) for cell in cells]
        vocabulary = read_text(values)
    bags = [vocabulary.indices(row) for row in values]
    width = max(map(len, bags))
    return (vocabulary, padded(bags, width)) if width else None


def is_number(value: str) -> bool:
    """Whether a value is a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def texts_of(cell: Cell) -> list[str]:
    """One cell's texts, as a request would give them."""
    return [text for text in cell if text is not None] if isinstance(cell, list) else [cell or ""]


def split_values(cell: Cell) -> list[str]:
    """One cell's values: a list's, or those of its text: "[27, 9]" holds two, an empty cell none."""
    if isinstance(cell, list):
        return [value for value in cell if value is not None]
    if cell is None or not cell.strip():
        return []
    if cell.startswith("[") and cell.endswith("]"):
        return [value.strip() for value in cell[1:-1].split(",") if value.strip()]
    return [cell]


def save_features(features: Features, directory: Path, side: str) -> None:
    """Write `<side>_vocabularies.json` and `<side>_features.npz`, and `<side>_encoded.npz` if an encoder was used."""
    (directory / f"{side}_vocabularies.json").write_text(json.dumps(vocabularies_to_json(features.vocabularies)))
    np.savez_compressed(directory / f"{side}_features.npz", allow_pickle=False, **features.bags)
    if features.encoded:
        np.savez(directory / f"{side}_encoded.npz", allow_pickle=False, **features.encoded)


def load_features(directory: Path, side: str) -> Features:
    """Read what `save_features` wrote."""
    vocabularies = vocabularies_of_json(json.loads((directory / f"{side}_vocabularies.json").read_text()))
    bags = load_arrays(directory / f"{side}_features.npz")
    path = directory / f"{side}_encoded.npz"
    encoded = load_arrays(path) if path.is_file() else {}
    return Features(vocabularies, {name: bags[name] for name in vocabularies}, encoded)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
