import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import onnx
import pytest

from serving.bundle import REQUIRED, latest_version, load_bundle
from serving.errors import BundleCorruptError, BundleUnusableError, InvalidRequestError, UnknownContextError
from serving.retriever import Retriever


@pytest.fixture
def copied(bundles: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundles, tmp_path / "bundles")
    return tmp_path / "bundles"


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_refused(name: str, damage: str, copied: Path) -> None:
    path = copied / "1" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(BundleCorruptError, match=name):
        Retriever.open(copied)


def rewrite(directory: Path, name: str, content: bytes) -> None:
    """Change a file and make the manifest agree, as a broken exporter would."""
    import hashlib

    (directory / name).write_bytes(content)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", sorted(set(REQUIRED) - {"item_tower.onnx", "items.faiss"}))
def test_a_file_that_cannot_be_parsed_is_refused(name: str, copied: Path) -> None:
    rewrite(copied / "1", name, b"not what it should be")
    with pytest.raises(BundleCorruptError, match="cannot be parsed"):
        Retriever.open(copied)


def test_a_bundle_of_the_version_before_text_is_served(copied: Path) -> None:
    path = copied / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    assert Retriever.open(copied).bundle.manifest.schema_version == 2


@pytest.mark.parametrize("name", ["user_tower.onnx", "ranker.onnx"])
def test_weights_in_other_files_are_refused(name: str, copied: Path) -> None:
    model = onnx.load_from_string((copied / "1" / "user_tower.onnx").read_bytes())
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../etc/passwd")
    rewrite(copied / "1", name, model.SerializeToString())
    with pytest.raises(BundleCorruptError, match="keeps weights in other files"):
        Retriever.open(copied)


def test_an_index_that_is_none_is_refused(copied: Path) -> None:
    rewrite(copied / "1", "items.faiss", b"not what it should be")
    with pytest.raises(BundleCorruptError, match="index"):
        Retriever.open(copied)


def test_an_index_of_another_model_is_refused(copied: Path) -> None:
    index = faiss.IndexFlatIP(10)
    index.add(np.zeros((7, 10), np.float32))
    rewrite(copied / "1", "items.faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(BundleCorruptError, match="index vectors: 7, not 3000"):
        load_bundle(copied / "1", 1)


def test_an_index_that_answers_otherwise_is_refused(copied: Path) -> None:
    index = faiss.IndexFlatIP(10)
    index.add(np.ones((3000, 10), np.float32))
    rewrite(copied / "1", "items.faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(BundleCorruptError, match="golden queries"):
        Retriever.open(copied)


def test_an_index_of_swapped_items_is_refused(copied: Path) -> None:
    index = faiss.deserialize_index(np.frombuffer((copied / "1" / "items.faiss").read_bytes(), np.uint8))
    vectors = index.reconstruct_n(0, 3000).reshape(3, 1000, 10)
    swapped = faiss.IndexFlatIP(10)
    swapped.add(np.ascontiguousarray(vectors[:, ::-1]).reshape(3000, 10))  # the same scores, of other items
    rewrite(copied / "1", "items.faiss", faiss.serialize_index(swapped).tobytes())
    with pytest.raises(BundleCorruptError, match="of the items differ"):
        Retriever.open(copied)


def test_golden_queries_of_other_arrays_are_refused(copied: Path) -> None:
    np.savez(copied / "golden.npz", contexts=np.arange(3))
    rewrite(copied / "1", "golden_queries.npz", (copied / "golden.npz").read_bytes())
    with pytest.raises(BundleCorruptError, match="golden queries"):
        Retriever.open(copied)


def test_an_index_header_that_promises_more_than_its_bytes_is_refused(copied: Path) -> None:
    content = bytearray((copied / "1" / "items.faiss").read_bytes())
    content[8:16] = (1 << 60).to_bytes(8, "little")  # ntotal
    rewrite(copied / "1", "items.faiss", bytes(content))
    with pytest.raises(BundleCorruptError):
        Retriever.open(copied)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema_version": 99}, BundleUnusableError),
        ({"num_items": 0}, BundleCorruptError),
        ({"surprise": 1}, BundleCorruptError),
        ({"files": {}}, BundleCorruptError),
        ({"num_contexts": 3}, BundleCorruptError),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    change: dict[str, object], error: type[Exception], copied: Path
) -> None:
    path = copied / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error):
        Retriever.open(copied)


@pytest.mark.parametrize("text", ["", "[1]", "{", "x" * (1 << 21)])
def test_a_manifest_that_is_none_is_refused(text: str, copied: Path) -> None:
    (copied / "1" / "manifest.json").write_text(text)
    with pytest.raises((BundleCorruptError, BundleUnusableError)):
        Retriever.open(copied)


def test_the_highest_version_with_a_manifest_is_served(copied: Path) -> None:
    shutil.copytree(copied / "1", copied / "10")
    (copied / "11").mkdir()
    for name in ("latest", "²", "012"):
        (copied / name).mkdir()
        (copied / name / "manifest.json").write_text("{}")
    assert latest_version(copied) == 10
    assert Retriever.open(copied).bundle.version == 10
    assert Retriever.open(copied, version=1).bundle.version == 1


def test_a_root_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleUnusableError, match="no bundle"):
        Retriever.open(tmp_path)
    with pytest.raises(BundleUnusableError, match="version 3 has no manifest"):
        Retriever.open(tmp_path, version=3)


def test_requests_are_checked(bundles: Path) -> None:
    retriever = Retriever.open(bundles)
    assert len(retriever.retrieve("5").item_ids) == 10, "K as trained"
    for k in (0, -1, 1001):
        with pytest.raises(
            InvalidRequestError, match=rf"num_candidates \({k}\) must be from 1 to the model's 1000 items"
        ):
            retriever.retrieve("5", k)
    with pytest.raises(InvalidRequestError, match="context_id"):
        retriever.retrieve("", 3)
    with pytest.raises(UnknownContextError, match=r"context_id \(nobody\)"):
        retriever.retrieve("nobody", 3)
