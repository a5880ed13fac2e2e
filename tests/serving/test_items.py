"""From one version to the next with other items: files, answers and refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from esr_trainer.command_line import UsageError, main
from esr_trainer.whole_directory import sha256
from serving import export as exporting
from serving.__main__ import Serving
from serving.bundle import load_bundle, read_manifest
from serving.errors import BundleCorruptError, ServingError
from serving.export import export
from serving.index_building import build_index, measured, tune, write_index
from serving.items import built_of, embed, write_manifest
from serving.retriever import Retriever
from tests.conftest import last_json


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root whose items have two features: M = 2, K = 6, N = 300."""
    from esr_trainer.__main__ import command_line

    directory = tmp_path_factory.mktemp("items")
    rows = "\n".join(f'{row},kind{row % 7},"[{row % 3}, {row % 5}]"' for row in range(300))
    (directory / "features.csv").write_text(f"item,kind,tags\n{rows}\n")
    options = "--environment synthetic --items 300 --contexts 100 --candidates 6 --slate 2 --experts 2 --steps 20"
    features = ["--item-features", str(directory / "features.csv")]
    assert command_line([*options.split(), *features, "--out", str(directory / "run")]) == 0
    export(directory / "run", directory / "ivf", "ivf")
    for kind in ("flat", "hnsw"):
        shutil.copytree(directory / "ivf", directory / kind)
        give_index(directory / kind / "1", kind)
    return directory


def give_index(directory: Path, kind: Literal["flat", "hnsw"]) -> None:
    """Give a bundle an index of another kind, as export writes it; quicker than another export."""
    bundle = load_bundle(directory, 1)
    for name in bundle.manifest.index_files:
        (directory / name).unlink()
    (directory / "manifest.json").unlink()
    built = tune(build_index(kind, built_of(bundle).embeddings), embed(bundle, np.arange(100)), 6, 0.95)
    built = measured(built, embed(bundle, bundle.golden["contexts"]), 6, 0.95)
    write_index(directory, built)
    write_manifest(directory, replace(bundle, version=None), built)


@pytest.fixture
def root(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exact bundle's root."""
    return Path(shutil.copytree(exported / "flat", tmp_path / "root"))


def items(*arguments: object) -> int:
    return main(Serving, "python -m serving", ["items", *map(str, arguments)], refusals=(UsageError, ServingError))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def embeddings(root: Path, version: int) -> dict[str, np.ndarray]:
    """Item id -> embeddings under both experts, (M, D)."""
    bundle = load_bundle(root / str(version), version)
    rows = np.arange(len(bundle.item_ids))
    both = np.stack([bundle.index.reconstruct(rows, expert) for expert in range(2)], axis=1)
    return dict(zip(bundle.item_ids, both, strict=True))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_new_version_has_the_new_items_and_not_the_old(
    kind: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(exported / kind, tmp_path / "root"))
    before = {path.name: sha256(path) for path in (root / "1").iterdir()}
    popular = Retriever.open(root).retrieve("3").item_ids[:3]
    removed = write(tmp_path / "gone.txt", *popular, "", "7")
    added = write(
        tmp_path / "new.csv", "item,tags,kind,extra", 'new-1,"[0, 4]",kind3,x', "new-2,[9],other,x", '8a,"[]",,x'
    )
    assert items(root, "--add", added, "--remove", removed, "--json") == 0
    result = last_json(capsys.readouterr().out)
    gone = {*popular, "7"}
    assert (result["version"], result["items"], result["index"]) == (2, 303 - len(gone), kind)
    assert {path.name: sha256(path) for path in (root / "1").iterdir()} == before, "the parent is as it was"

    manifest, old = read_manifest(root / "2"), read_manifest(root / "1")
    assert (manifest.parent, old.parent) == (1, None)
    assert (manifest.quotas, manifest.num_candidates, manifest.model_id) == (old.quotas, 6, old.model_id)
    assert manifest.recall >= 0.95
    was, now = embeddings(root, 1), embeddings(root, 2)
    assert list(now) == [*(item for item in was if item not in gone), "new-1", "new-2", "8a"]
    assert all(np.array_equal(now[item], was[item]) for item in now.keys() & was.keys())
    answers = Retriever.open(root).retrieve("3", len(now)).item_ids
    assert sorted(answers) == sorted(now)


def test_added_items_are_embedded_by_what_is_known_of_them(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "gone.txt", "10", "11")
    assert items(root, "--remove", tmp_path / "gone.txt") == 0
    rows = ['10,kind3,"[1, 0]"', 'copy-of-10,kind3,"[1, 0]"', "unknown,other,[8]"]
    write(tmp_path / "new.csv", "item,kind,tags", *rows)
    assert items(root, "--add", tmp_path / "new.csv") == 0
    was, now = embeddings(root, 1), embeddings(root, 3)
    np.testing.assert_allclose(now["10"], was["10"], rtol=0, atol=1e-6, err_msg="its id is the tower's still")
    assert not now["unknown"].any(), "nothing is known of it"
    # the features' part of an embedding is the whole less the id's part: equal for items with the same features
    write(tmp_path / "more.csv", "item,kind,tags", 'twin,kind3,"[0, 1]"')
    assert items(root, "--add", tmp_path / "more.csv") == 0
    latest = embeddings(root, 4)
    np.testing.assert_allclose(latest["twin"], latest["copy-of-10"], rtol=0, atol=1e-6)
    assert np.abs(latest["twin"] - latest["10"]).max() > 1e-3


def test_a_removed_item_can_be_replaced_at_once(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "gone.txt", "10")
    write(tmp_path / "new.csv", "item,kind,tags", "10,kind1,")
    assert items(root, "--add", tmp_path / "new.csv", "--remove", tmp_path / "gone.txt") == 0
    was, now = embeddings(root, 1), embeddings(root, 2)
    assert len(now) == len(was)
    assert np.abs(now["10"] - was["10"]).max() > 1e-3


def test_an_earlier_version_can_be_the_parent(root: Path, tmp_path: Path) -> None:
    assert items(root, "--remove", write(tmp_path / "a.txt", "1")) == 0
    assert items(root, "--remove", write(tmp_path / "b.txt", "2"), "--version", 1) == 0
    assert "1" in embeddings(root, 3)
    assert "2" not in embeddings(root, 3)
    assert read_manifest(root / "3").parent == 1


@pytest.mark.parametrize(
    ("add", "remove", "rule"),
    [
        (None, None, "give --add, --remove, or both"),
        (None, ["5", "nobody", "none"], "2 ids are not among the items, such as nobody"),
        (None, [str(row) for row in range(300)], "0 would be left, fewer than the model's K (6)"),
        (None, [str(row) for row in range(295)], "5 would be left, fewer than the model's K (6)"),
        (["item,kind,tags", "5,kind1,[1]"], None, "1 ids are already there, such as 5"),
        (["item,kind,tags", "a,kind1,[1]", "a,kind2,[1]"], None, "repeats an id or has none"),
        (["item,kind,tags", ",kind1,[1]"], None, "repeats an id or has none"),
        (["item,kind", "a,kind1"], None, "has no column tags, which the item tower takes"),
        (["item,kind,tags", 'a,kind1,"[0, 1, 2]"'], None, "3 values of tags; the item tower takes at most 2"),
        ([], None, "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_publishes_nothing(
    add: list[str] | None,
    remove: list[str] | None,
    rule: str,
    root: Path,
    tmp_path: Path,
    refused: Callable[[int], str],
) -> None:
    arguments: list[object] = [root]
    if add is not None:
        arguments += ["--add", write(tmp_path / "add.csv", *add)]
    if remove is not None:
        arguments += ["--remove", write(tmp_path / "remove.txt", *remove)]
    assert rule in refused(items(*arguments))
    assert {path.name for path in root.iterdir()} <= {"1", ".lock"}


def test_a_parent_that_cannot_be_used_is_one_line(root: Path, tmp_path: Path, refused: Callable[[int], str]) -> None:
    gone = write(tmp_path / "gone.txt", "1")
    assert "no manifest" in refused(items(root, "--remove", gone, "--version", 9))
    assert "cannot be read" in refused(items(root, "--remove", tmp_path / "nothing.txt"))
    assert "min_recall" in refused(items(root, "--remove", gone, "--min-recall", 2)).replace("-", "_")
    (root / "1" / "MODEL_CARD.md").write_text("another")
    assert "MODEL_CARD.md was changed" in refused(items(root, "--remove", gone))
    assert {path.name for path in root.iterdir()} == {"1", ".lock"}


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_every_experts_index_file_is_verified(kind: str, exported: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported / kind, tmp_path / "root"))
    path = root / "1" / "items_1.faiss"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"items_1\.faiss was changed"):
        Retriever.open(root)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"nprobe": None}, r"index \(ivf\) needs nprobe"),
        ({"ef_search": 5}, r"index \(ivf\) needs nprobe"),
        ({"index": "flat"}, "needs neither nprobe nor ef_search"),
        ({"nprobe": 0}, "nprobe: Input should be greater than 0"),
        ({"recall": 1.5}, "recall: Input should be less"),
        ({"index": "hnsw", "nprobe": None, "ef_search": 9}, "the hnsw index cannot be parsed"),
        ({"num_experts": 1_000_000_000}, "num_experts"),
        ({"num_experts": 3}, r"does not name items_2\.faiss"),
    ],
)
def test_a_manifest_of_another_index_is_refused(
    change: dict[str, object], rule: str, exported: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(exported / "ivf", tmp_path / "root"))
    path = root / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleCorruptError, match=rule):
        Retriever.open(root)


def test_too_little_recall_publishes_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], str]
) -> None:
    manifest = read_manifest(exported / "ivf" / "1")
    assert manifest.nprobe
    assert 0.95 <= manifest.recall <= 1
    monkeypatch.setattr(exporting, "tune", lambda built, *_: built)  # looks into one cluster
    arguments = [str(exported / "run"), "--out", str(tmp_path / "root"), "--index", "ivf", "--min-recall", "0.99"]
    line = refused(main(Serving, "python -m serving", ["export", *arguments]))
    assert "error: index (ivf): recall@6 on the golden queries is 0." in line
    assert "below min-recall (0.99)" in line
    assert not (tmp_path / "root").exists()
