import json
from pathlib import Path

import numpy as np
import pytest

from esr_trainer.command_line import main
from serving import Retriever
from serving.__main__ import Serving
from serving.bench_index import of_bundle, stand_in_embeddings
from tests.conftest import last_json


def test_the_table_holds_every_kind_and_keeps_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "index.json"

    def bench(*arguments: str) -> list[dict[str, float]]:
        command = ["bench-index", *arguments, "--out", str(out), "--json"]
        assert main(Serving, "python -m serving", command) == 0
        rows: list[dict[str, float]] = last_json(capsys.readouterr().out)["rows"]
        return rows

    first = bench("--sizes", "300,400", "--kinds", "flat,ivf")
    second = bench("--sizes", "300", "--kinds", "hnsw")
    assert [(row["items"], row["kind"]) for row in first] == [(300, "flat"), (300, "ivf"), (400, "flat"), (400, "ivf")]
    content = json.loads(out.read_text())
    assert content["rows"] == [first[0], *second, *first[1:]]
    assert content["embeddings"].startswith("stand-in")
    for row in content["rows"]:
        assert row["recall"] > 0.9
        assert row["milliseconds"] > 0
        assert row["megabytes"] >= row["items"] * 64 * 4 / 1e6 - 0.1
    other = bench("--sizes", "300", "--kinds", "flat", "--seed", "1")
    assert json.loads(out.read_text())["rows"] == other, "rows of another seed are not kept"


def test_stand_in_embeddings_are_what_they_say() -> None:
    items, queries = stand_in_embeddings(20_000, 10, np.random.default_rng(0))
    assert (items.shape, queries.shape, items.dtype) == ((1, 20_000, 64), (10, 1, 64), np.float32)
    again, _ = stand_in_embeddings(20_000, 10, np.random.default_rng(0))
    assert np.array_equal(items, again)
    variance = items[0].var(axis=0)
    assert variance[0] / variance[48:].mean() == pytest.approx(np.mean(1 / (1 / np.arange(49, 65))), rel=0.1)


def test_a_bundle_is_searched_by_its_own_contexts(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retriever = Retriever.open(bundles)
    subject = of_bundle(bundles, 0)
    assert subject.embeddings.shape[:2] == (len(retriever.bundle.index.experts), retriever.bundle.index.num_items)
    everyone = retriever.contexts.embed(np.arange(len(retriever.bundle.context_ids)))
    asked = np.concatenate([subject.tuning, subject.queries])
    assert len(np.unique(asked, axis=0)) == len(asked) == min(len(everyone), 756)
    assert (asked[:, None] == everyone[None]).all(axis=(2, 3)).any(axis=1).all()

    command = ["bench-index", "--bundle", str(bundles), "--kinds", "flat", "--json"]
    assert main(Serving, "python -m serving", command) == 0
    found = last_json(capsys.readouterr().out)
    assert found["embeddings"].startswith(retriever.bundle.manifest.model_id)
    assert [(row["items"], row["recall"]) for row in found["rows"]] == [(retriever.bundle.index.num_items, 1)]


def test_no_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Serving, "python -m serving", ["bench-index", "--bundle", str(tmp_path)]) == 2
    assert f"bundle ({tmp_path}) cannot be used" in capsys.readouterr().err
