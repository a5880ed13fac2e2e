"""A bundle: towers, index and ids of one model, which load together or not at all.

`<root>/<integer version>/` holds the files below; `manifest.json` is written last and names the SHA-256 and size of
each other file. Every file is hashed before it is parsed, from the same bytes, and nothing is unpickled.
Axes: C contexts, N items, M experts, D embedding dimension, Q golden queries, K candidates, P values of a feature.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esr_trainer.onnx_session import first_line, session
from serving.errors import BundleCorruptError, BundleUnusableError
from serving.index import ItemIndex
from serving.ranker import Ranker

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20

USER_TOWER = "user_tower.onnx"
"""int64 bags, one (B, P) input per context feature, -1 pads -> embeddings / temperature, (B, M, D) float32."""
ITEM_TOWER = "item_tower.onnx"
"""int64 bags, one (B, P) input per item feature, -1 pads -> embeddings, (B, M, D) float32; only hashed by a server."""
INDEX = "items.faiss"
"""Inner-product index of M * N vectors of D: expert m's vector of item i is number m * N + i."""
ITEM_IDS = "item_ids.npy"
"""The items' own ids, (N,) strings."""
CONTEXT_IDS = "context_ids.npy"
"""The contexts' own ids, (C,) strings."""
CONTEXT_FEATURES = "context_features.npz"
"""The user tower's inputs for every context: feature -> bags, (C, P) int64."""
VOCABULARIES = "vocabularies.json"
"""{"context": {feature: values}, "item": {feature: values}}: the value of each index of a bag, but for the ids."""
RANKER = "ranker.onnx"
"""The late-stage ranker, if the run has one as a file (serving.ranker says what it is asked)."""
GOLDEN = "golden_queries.npz"
"""contexts (Q,), candidates (Q, K), scores (Q, K): rows and logits that the trained model gave."""
REQUIRED = (USER_TOWER, ITEM_TOWER, INDEX, ITEM_IDS, CONTEXT_IDS, CONTEXT_FEATURES, VOCABULARIES, GOLDEN)


class BundleFile(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


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
    num_experts: int = Field(gt=0)
    """M."""
    embedding_dim: int = Field(gt=0)
    """D."""
    num_candidates: int = Field(gt=0)
    """K as trained; a request may ask for another."""
    quotas: list[int]
    """K_m as trained."""
    metric: Literal["inner_product"]
    """Score of an item under an expert: <user embedding, item embedding>, the logit."""
    index: Literal["flat"]
    """Kind of index; flat is exact."""
    dtype: Literal["float32"]
    """Type of embeddings and scores."""
    files: dict[str, BundleFile]
    """Every other file of the bundle."""


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
    vocabularies: Mapping[str, Sequence[str]]
    """Feature of a context -> the value of each index of a bag."""
    golden: Mapping[str, np.ndarray]


def latest_version(root: Path) -> int:
    """The highest integer version under a bundle root."""
    names = [path.name for path in root.glob("*") if (path / MANIFEST).is_file()]
    versions = [int(name) for name in names if re.fullmatch(r"[1-9][0-9]*", name)]
    if not versions:
        raise BundleUnusableError("no bundle: the root holds no <integer>/manifest.json")
    return max(versions)


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleCorruptError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleUnusableError(f"version {directory.name} has no {MANIFEST}") from error
    except ValueError as error:
        raise BundleCorruptError(f"{MANIFEST} is not JSON") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise BundleUnusableError(f"{MANIFEST} has schema version {found}, not {SCHEMA_VERSION}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise BundleCorruptError(f"{MANIFEST}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    missing = [name for name in REQUIRED if name not in manifest.files]
    if missing:
        raise BundleCorruptError(f"{MANIFEST} does not name {', '.join(missing)}")
    return manifest


def verified_bytes(directory: Path, manifest: Manifest, name: str) -> bytes:
    """One file's bytes, after their size and SHA-256 were checked."""
    expected = manifest.files[name]
    path = directory / name
    if not path.is_file():
        raise BundleCorruptError(f"{name} is missing")
    if path.stat().st_size != expected.size:
        raise BundleCorruptError(f"{name} has {path.stat().st_size} bytes, not {expected.size}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleUnusableError(f"{name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise BundleCorruptError(f"{name} was changed: its SHA-256 differs from the manifest's")
    return content


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
    names = [*REQUIRED, *({RANKER} & manifest.files.keys())]
    content = {name: verified_bytes(directory, manifest, name) for name in names}
    try:
        item_ids = parse_array(content[ITEM_IDS]).tolist()
        bundle = Bundle(
            version=version,
            manifest=manifest,
            user_tower=session(content[USER_TOWER]),
            index=parse_index(content[INDEX], manifest),
            ranker=Ranker(session(content[RANKER]), item_ids) if RANKER in content else None,
            item_ids=item_ids,
            context_ids=parse_array(content[CONTEXT_IDS]).tolist(),
            context_features=parse_archive(content[CONTEXT_FEATURES]),
            vocabularies=json.loads(content[VOCABULARIES])["context"],
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


def parse_index(content: bytes, manifest: Manifest) -> ItemIndex:
    """An index from verified bytes; FAISS may allocate no more than the bytes could hold."""
    faiss.set_deserialization_vector_byte_limit(max(2 * len(content), 1 << 20))
    faiss.set_deserialization_loop_limit(max(len(content), 1 << 20))
    index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    facts = (
        ("vectors", index.ntotal, manifest.num_experts * manifest.num_items),
        ("dimension", index.d, manifest.embedding_dim),
        ("metric", index.metric_type, faiss.METRIC_INNER_PRODUCT),
    )
    for name, found, expected in facts:
        if found != expected:
            raise BundleCorruptError(f"index {name}: {found}, not {expected} as the manifest says")
    return ItemIndex(index, manifest.num_experts)


def parse_array(content: bytes) -> np.ndarray:
    """An .npy array; object arrays are refused."""
    array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def parse_archive(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz; object arrays are refused."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
