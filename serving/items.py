"""Add and remove items: a new version of a bundle, its towers as they were, its index and golden queries renewed.

Axes: M experts, N items, A added items, D embedding dimension, P values of a feature, Q golden queries, K candidates.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from esr_trainer.command_line import UsageError, note
from esr_trainer.features import ID, Cell, split_values, texts_of
from esr_trainer.onnx_session import session
from esr_trainer.table_files import read_table
from esr_trainer.vocabularies import Categories, EncodedText, Vocabulary, padded, vocabularies_of_json
from esr_trainer.whole_directory import next_numbered, sha256
from serving import bundle
from serving.bundle import Bundle, Manifest, load_bundle
from serving.bundle_files import check_hash, files_of, verified_bytes
from serving.expert_index import FaissExpert
from serving.golden_queries import check_answers, write_golden_answers
from serving.index_building import BuiltIndex, exact_index, measured, tune, with_other_items, write_index

NUM_TUNING = 512
"""Contexts that the search is tuned on, spread evenly, without the golden queries."""


class Change(NamedTuple):
    """What becomes of the items."""

    kept: np.ndarray
    """Rows that stay, ascending; they become rows 0, 1, ..."""
    added_ids: list[str]
    """A; they come last."""
    added: np.ndarray
    """(M, A, D) float32."""


def with_items(root: Path, add: Path | None, remove: Path | None, version: int | None, min_recall: float) -> Path:
    """Publish a version of a bundle root with other items as its next version.

    Args:
        root: bundle root.
        add: CSV or Parquet: ids in its first column, and a column of each feature of the item tower.
        remove: text, one id a line; a removed item may be added again with other features.
        version: the parent; the highest by default.
        min_recall: of the index on the golden queries, against exact search.

    Returns:
        The new bundle's directory.

    Raises:
        UsageError: an id is unknown or already there, a column is missing, or too few items or too little recall would
            be left; nothing is then published.
        ServingError: the parent cannot be used.
    """
    if add is None and remove is None:
        raise UsageError("items: give --add, --remove, or both")
    parent_version = bundle.latest_version(root) if version is None else version
    source = root / str(parent_version)
    parent = load_bundle(source, parent_version)
    change = read_change(source, parent, add, remove)
    with next_numbered(root, "root") as (next_version, directory):
        write_version(directory, source, parent, change, min_recall)
        made = load_bundle(directory, next_version)
        answers = made.index.pick(embed(made, made.golden["contexts"]), made.manifest.num_candidates)
        check_answers(answers, made.golden, made.manifest.num_experts, made.manifest.recall)
    return root / str(next_version)


def read_change(source: Path, parent: Bundle, add: Path | None, remove: Path | None) -> Change:
    """Read what to remove and to add, and check it against the parent."""
    removed = read_ids(remove, parent.item_ids) if remove else set()
    kept = np.array([row for row, item in enumerate(parent.item_ids) if item not in removed], np.int64)
    manifest = parent.manifest
    ids: list[str] = []
    added = np.empty((manifest.num_experts, 0, manifest.embedding_dim), np.float32)
    if add:
        staying = {parent.item_ids[row] for row in kept}
        ids, added = embed_added(source, parent, add, staying)
    if (left := len(kept) + len(ids)) < manifest.num_candidates:
        raise UsageError(f"items: {left} would be left, fewer than the model's K ({manifest.num_candidates})")
    return Change(kept, ids, added)


def read_ids(path: Path, known: Sequence[str]) -> set[str]:
    """The ids of a text file, one a line.

    Raises:
        UsageError: the file cannot be read, or holds an unknown id.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"remove ({path}) cannot be read: {getattr(error, 'strerror', None) or error}") from error
    ids = {line.strip() for line in lines if line.strip()}
    if unknown := sorted(ids.difference(known)):
        raise UsageError(f"remove ({path}): {len(unknown)} ids are not among the items, such as {unknown[0][:100]}")
    return ids


def embed_added(source: Path, parent: Bundle, path: Path, staying: set[str]) -> tuple[list[str], np.ndarray]:
    """The ids of a table and the item tower's embeddings of its rows, (M, A, D).

    The tower knows the ids that it was trained with; another id is an empty bag, and so is an unknown value.

    Raises:
        UsageError: an id is empty, repeated or already there, a column is missing, or a row has more values than the
            tower takes.
    """
    table = read_table(path, "add")
    ids = table[:, 0].to_list()
    if None in ids or len(set(ids)) < len(ids):
        raise UsageError(f"add ({path}): column {table.columns[0]} repeats an id or has none in a row")
    if there := sorted(staying.intersection(ids)):
        raise UsageError(f"add ({path}): {len(there)} ids are already there, such as {there[0][:100]}")
    tower = session(verified_bytes(source, parent.manifest.files, bundle.ITEM_TOWER))
    vocabularies = vocabularies_of_json(
        json.loads(verified_bytes(source, parent.manifest.files, bundle.VOCABULARIES))["item"]
    )
    known_ids = Categories(tower_ids(source, parent))
    widths = bundle.tower_widths(tower)
    if missing := [name for name in widths if name != ID and name not in table.columns[1:]]:
        raise UsageError(f"add ({path}) has no column {', '.join(missing)}, which the item tower takes")
    if list(widths) == [ID] and set(ids).difference(known_ids):
        note("the item tower knows items by id alone: the logits of ids that it was not trained with are 0")
    bags = {ID: padded([known_ids.indices([item]) for item in ids], 1)}
    for name in vocabularies:
        bags[name] = known_bags(path, name, table[name].to_list(), vocabularies[name], widths[name])
    return ids, run_tower(tower, bags).transpose(1, 0, 2)


def known_bags(path: Path, name: str, cells: list[Cell], vocabulary: Vocabulary, width: int | None) -> np.ndarray:
    """One feature's bags, without the values that the tower does not know: (A, P)."""
    values_of = split_values if isinstance(vocabulary, Categories) else texts_of
    bags = [vocabulary.indices(values_of(cell)) for cell in cells]
    if isinstance(vocabulary, EncodedText) and (new := sum(not bag for bag in bags)):
        note(f"feature {name}: {new} texts are not among those that were encoded, and count as absent")
    most = max(map(len, bags), default=0)
    if width is not None and most > width:
        raise UsageError(f"add ({path}): a row has {most} values of {name}; the item tower takes at most {width}")
    return padded(bags, width or max(1, most))


def run_tower(tower: ort.InferenceSession, bags: dict[str, np.ndarray]) -> np.ndarray:
    """A tower's embeddings: bags (B, P) -> (B, M, D)."""
    embeddings: np.ndarray = tower.run(None, bags)[0]
    return embeddings


def embed(parent: Bundle, rows: np.ndarray) -> np.ndarray:
    """The user tower's embeddings of some contexts: (Q,) -> (Q, M, D)."""
    return run_tower(parent.user_tower, {name: values[rows] for name, values in parent.context_features.items()})


def tower_ids(source: Path, parent: Bundle) -> list[str]:
    """The ids that the item tower was trained with, in the order of its table."""
    if bundle.ITEM_TOWER_IDS not in parent.manifest.files:
        return parent.item_ids
    ids: list[str] = bundle.parse_array(verified_bytes(source, parent.manifest.files, bundle.ITEM_TOWER_IDS)).tolist()
    return ids


def write_version(directory: Path, source: Path, parent: Bundle, change: Change, min_recall: float) -> None:
    """Write every file of the new bundle, the manifest last."""
    manifest = parent.manifest
    check_ranker(source, manifest)
    renewed = {bundle.ITEM_IDS, bundle.GOLDEN, bundle.ITEM_TOWER_IDS, *manifest.index_files}
    for name in manifest.files.keys() - renewed:
        shutil.copyfile(source / name, directory / name)
        check_hash(name, sha256(directory / name), manifest.files[name])
    ids = [*(parent.item_ids[row] for row in change.kept), *change.added_ids]
    np.save(directory / bundle.ITEM_IDS, np.array(ids), allow_pickle=False)
    np.save(directory / bundle.ITEM_TOWER_IDS, np.array(tower_ids(source, parent)), allow_pickle=False)

    golden = parent.golden["contexts"]
    contexts = np.linspace(0, manifest.num_contexts - 1, min(manifest.num_contexts, NUM_TUNING)).astype(np.int64)
    others = np.setdiff1d(contexts, golden)
    built = with_other_items(built_of(parent), change.kept, change.added)
    queries = embed(parent, golden)
    built = tune(built, embed(parent, others) if len(others) else queries, manifest.num_candidates, min_recall)
    built = measured(built, queries, manifest.num_candidates, min_recall)
    write_index(directory, built)
    exact = exact_index(built.embeddings).pick(queries, manifest.num_candidates)
    write_golden_answers(directory / bundle.GOLDEN, golden, exact)
    write_manifest(directory, parent, built)


def built_of(parent: Bundle) -> BuiltIndex:
    """A loaded index as one that was built."""
    manifest = parent.manifest
    rows = np.arange(manifest.num_items)
    embeddings = np.stack([parent.index.reconstruct(rows, expert) for expert in range(manifest.num_experts)])
    graphs = tuple(expert.index for expert in parent.index.experts if isinstance(expert, FaissExpert))
    return BuiltIndex(manifest.index, embeddings, graphs, manifest.index_facts.effort)


def check_ranker(source: Path, manifest: Manifest) -> None:
    """Refuse a late-stage ranker that names items by their rows, which change.

    Raises:
        UsageError: there is such a ranker.
    """
    if bundle.RANKER in manifest.files:
        inputs = session(verified_bytes(source, manifest.files, bundle.RANKER)).get_inputs()
        if any(node.name == "item_rows" for node in inputs):
            raise UsageError(
                f"items: {bundle.RANKER} names items by row, and the rows change; give it item_ids to use this"
            )


def write_manifest(directory: Path, parent: Bundle, built: BuiltIndex) -> None:
    """Write the parent's manifest with what has changed."""
    changed = {
        "parent": parent.version,
        "num_items": built.embeddings.shape[1],
        "index": built.kind,
        "nprobe": built.nprobe,
        "ef_search": built.ef_search,
        "recall": built.recall,
        "files": files_of(directory),
    }
    manifest = parent.manifest.model_copy(update=changed)
    (directory / bundle.MANIFEST).write_text(manifest.model_dump_json(indent=2))
