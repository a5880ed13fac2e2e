"""A bundle: towers, index and ids of one model, which load together or not at all.

`<root>/<integer version>/` holds the files below; `manifest.json` is written last and names the SHA-256 and size of
each other file. Every file is hashed before it is parsed, from the same bytes, and nothing is unpickled.
Axes: C contexts, N items, M experts, D embedding dimension, Q golden queries, K candidates, P values of a feature.
"""

import io
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_trainer.onnx_session import first_line, session
from esr_trainer.vocabularies import Vocabulary, vocabularies_of_json
from serving.bundle_files import BundleFile, verified_array, verified_bytes, verify
from serving.errors import BundleCorruptError, BundleUnusableError
from serving.index import ItemIndex
from serving.index_files import IndexFacts, file_names, parse_item_index
from serving.ranker import Ranker

SCHEMA_VERSION = 3
READABLE = (2, 3)
"""Schema versions that can be served; in 2 no feature is text."""
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20

USER_TOWER = "user_tower.onnx"
"""int64 bags, one (B, P) input per context feature, -1 pads -> embeddings / temperature, (B, M, D) float32. P is the
tower's for categories, and free for text."""
ITEM_TOWER = "item_tower.onnx"
"""int64 bags, one (B, P) input per item feature, -1 pads -> embeddings, (B, M, D) float32; only hashed by a server."""
INDEX = "items.faiss"
"""Inner-product index. A flat one holds M * N vectors of D: expert m's vector of item i is number m * N + i. Of another
kind there is one index of N vectors per expert: those of the experts after the first are in items_<m>.faiss."""
ITEM_IDS = "item_ids.npy"
"""The items' own ids, (N,) strings."""
CONTEXT_IDS = "context_ids.npy"
"""The contexts' own ids, (C,) strings."""
CONTEXT_FEATURES = "context_features.npz"
"""The user tower's inputs for every context: feature -> bags, (C, P) int64."""
VOCABULARIES = "vocabularies.json"
"""{"context": {feature: values}, "item": {feature: values}}: the value of each index of a bag, but for the ids; of a
text feature, an object of the kind hashed-text that says how its n-grams become indices (esr_trainer.hashed_text)."""
RANKER = "ranker.onnx"
"""The late-stage ranker, if the run has one as a file (serving.ranker says what it is asked)."""
GOLDEN = "golden_queries.npz"
"""contexts (Q,), candidates (Q, K), scores (Q, K): rows and logits that the trained model gave."""
ITEM_TOWER_IDS = "item_tower_ids.npy"
"""The ids that the item tower was trained with, (V,) strings, where `items` has changed item_ids.npy; optional."""
REQUIRED = (USER_TOWER, ITEM_TOWER, INDEX, ITEM_IDS, CONTEXT_IDS, CONTEXT_FEATURES, VOCABULARIES, GOLDEN)


class Manifest(BaseModel):
    """The content of manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    schema_version: int
    """Layout of the bundle."""
    model_id: str
    """Estimator and start of the checkpoint's SHA-256."""
    step: int
    """Gradient steps of the checkpoint."""
    num_contexts: int = Field(gt=0)
    """C."""
    num_items: int = Field(gt=0)
    """N."""
    num_experts: int = Field(gt=0, le=1000)
    """M."""
    embedding_dim: int = Field(gt=0)
    """D."""
    num_candidates: int = Field(gt=0)
    """K as trained; a request may ask for another."""
    quotas: list[int]
    """K_m as trained."""
    metric: Literal["inner_product"]
    """Score of an item under an expert: <user embedding, item embedding>, the logit."""
    index: Literal["flat", "ivf", "hnsw"]
    """Kind of index; flat is exact."""
    nprobe: int | None = Field(default=None, gt=0)
    """Clusters that an ivf index reads for K candidates."""
    ef_search: int | None = Field(default=None, gt=0)
    """Length of the queue with which an hnsw index is walked for K candidates."""
    recall: float = Field(default=1.0, ge=0, le=1)
    """The share of the golden queries' exact candidates that the index finds: recall@K."""
    parent: int | None = Field(default=None, gt=0)
    """The version that this one was made of by adding and removing items; none if it was exported."""
    dtype: Literal["float32"]
    """Type of embeddings and scores."""
    files: dict[str, BundleFile]
    """Every other file of the bundle."""

    @property
    def index_files(self) -> tuple[str, ...]:
        """The files of the index, in the order of the experts."""
        return file_names(self.index, self.num_experts)

    @property
    def index_facts(self) -> IndexFacts:
        """What the index must be."""
        effort = self.nprobe or self.ef_search or 0
        return IndexFacts(self.index, self.num_experts, self.num_items, self.embedding_dim, effort, self.num_candidates)

    @model_validator(mode="after")
    def check_effort(self) -> Self:
        """An approximate index needs to know how hard to search."""
        needed = {"flat": [], "ivf": ["nprobe"], "hnsw": ["ef_search"]}[self.index]
        if [name for name in ("nprobe", "ef_search") if getattr(self, name) is not None] != needed:
            raise ValueError(f"index ({self.index}) needs {' and '.join(needed) or 'neither nprobe nor ef_search'}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle."""

    version: int
    manifest: Manifest
    user_tower: ort.InferenceSession
    index: ItemIndex
    ranker: Ranker | None
    item_ids: list[str]
    context_ids: list[str]
    context_features: Mapping[str, np.ndarray]
    vocabularies: Mapping[str, Vocabulary]
    """Feature of a context -> the index of each value in a bag."""
    golden: Mapping[str, np.ndarray]

    @cached_property
    def widths(self) -> dict[str, int | None]:
        """P of the user tower's inputs; None where it is free."""
        return tower_widths(self.user_tower)


def tower_widths(tower: ort.InferenceSession) -> dict[str, int | None]:
    """P of each input of a tower; None where it is free."""
    return {node.name: node.shape[1] if isinstance(node.shape[1], int) else None for node in tower.get_inputs()}


def latest_version(root: Path) -> int:
    """The highest integer version under a bundle root."""
    versions = published_versions(root)
    if not versions:
        raise BundleUnusableError("no bundle: the root holds no <integer>/manifest.json")
    return max(versions)


def published_versions(root: Path) -> dict[int, os.stat_result]:
    """The integer versions under a bundle root whose manifest is a regular file, and that file's facts."""
    found = {}
    for path in root.glob(f"*/{MANIFEST}"):
        if re.fullmatch(r"[1-9][0-9]{0,17}", path.parent.name):  # 18 digits fit the wire's and the log's integers
            try:
                status = path.stat()
            except FileNotFoundError:  # removed just now
                continue
            if stat.S_ISREG(status.st_mode):
                found[int(path.parent.name)] = status
    return found


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json."""
    path = directory / MANIFEST
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleUnusableError(f"version {directory.name}: {MANIFEST} is not a regular file")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleCorruptError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleUnusableError(f"version {directory.name} has no {MANIFEST}") from error
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(f"{MANIFEST} is not JSON") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found not in READABLE:
        raise BundleUnusableError(f"{MANIFEST} has schema version {found}, not {SCHEMA_VERSION}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        said = ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        raise BundleCorruptError(f"{MANIFEST}: {said}") from error
    missing = [name for name in dict.fromkeys((*REQUIRED, *manifest.index_files)) if name not in manifest.files]
    if missing:
        raise BundleCorruptError(f"{MANIFEST} does not name {', '.join(missing)}")
    return manifest


def load_bundle(directory: Path, version: int) -> Bundle:
    """Load one version; every required file is verified first.

    Args:
        directory: the bundle's files, usually `<root>/<version>`.
        version: what answers call it.

    Raises:
        BundleUnusableError: there is no manifest, or it has another schema version.
        BundleCorruptError: a file is missing, was changed, cannot be parsed, or does not fit the manifest.
    """
    manifest = read_manifest(directory)
    verify(directory, manifest.files, ITEM_TOWER)
    parsed = [name for name in (*REQUIRED, RANKER) if name in manifest.files and name not in (ITEM_TOWER, INDEX)]
    content = {name: verified_bytes(directory, manifest.files, name) for name in parsed}
    index = parse_item_index(
        [verified_array(directory, manifest.files, name) for name in manifest.index_files], manifest.index_facts
    )
    try:
        item_ids = parse_array(content[ITEM_IDS]).tolist()
        bundle = Bundle(
            version=version,
            manifest=manifest,
            user_tower=session(content[USER_TOWER]),
            index=index,
            ranker=Ranker(session(content[RANKER]), item_ids) if RANKER in content else None,
            item_ids=item_ids,
            context_ids=parse_array(content[CONTEXT_IDS]).tolist(),
            context_features=parse_archive(content[CONTEXT_FEATURES]),
            vocabularies=vocabularies_of_json(json.loads(content[VOCABULARIES])["context"]),
            golden=parse_archive(content[GOLDEN]),
        )
    except BundleCorruptError:
        raise
    except Exception as error:
        raise BundleCorruptError(f"a file of version {version} cannot be parsed: {first_line(error)}") from error
    check_fit(bundle)
    return bundle


def check_fit(bundle: Bundle) -> None:
    """Check that towers, index and ids are one unit."""
    manifest = bundle.manifest
    facts = (
        ("item ids", len(bundle.item_ids), manifest.num_items),
        ("distinct item ids", len(set(bundle.item_ids)), manifest.num_items),
        ("context ids", len(bundle.context_ids), manifest.num_contexts),
        ("distinct context ids", len(set(bundle.context_ids)), manifest.num_contexts),
        ("features with a vocabulary", sorted(bundle.vocabularies), sorted({*bundle.context_features} - {"id"})),
        ("user tower inputs", sorted(i.name for i in bundle.user_tower.get_inputs()), sorted(bundle.context_features)),
        ("golden queries", sorted(bundle.golden), ["candidates", "contexts", "scores"]),
        *(("context feature rows", len(bags), manifest.num_contexts) for bags in bundle.context_features.values()),
    )
    for name, found, expected in facts:
        if found != expected:
            raise BundleCorruptError(f"{name}: {found}, not {expected} as the manifest says")
    queries = (len(bundle.golden["contexts"]), manifest.num_candidates)
    if not bundle.golden["candidates"].shape == bundle.golden["scores"].shape == queries:
        raise BundleCorruptError(f"golden queries: their arrays are not {queries}")


def parse_array(content: bytes) -> np.ndarray:
    """An .npy array; object arrays are refused."""
    array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def parse_archive(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz; object arrays are refused."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
