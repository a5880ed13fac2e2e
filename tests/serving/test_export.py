import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from esr_trainer.checkpoint import Checkpoint, checkpoints
from esr_trainer.command_line import UsageError, main
from esr_trainer.features import id_features, read_features
from esr_trainer.policy import greedy_candidates
from esr_trainer.quotas import expert_of_position
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.whole_directory import TEMPORARY, sha256, sole_writer
from serving import export as exporting
from serving.__main__ import Serving
from serving.bundle import REQUIRED
from serving.export import export
from serving.export_check import Best, best_items, greedy_regret, logits_of
from serving.export_tower import write_tower
from serving.index_building import BuiltIndex, write_index
from serving.retriever import Retriever


def test_a_bundle_is_whole(bundles: Path, trained_run: Path) -> None:
    directory = bundles / "1"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert {path.name for path in directory.iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(REQUIRED) <= manifest["files"].keys()
    for name, file in manifest["files"].items():
        assert file == {"sha256": sha256(directory / name), "size": (directory / name).stat().st_size}
    assert (manifest["num_experts"], manifest["num_candidates"], manifest["quotas"]) == (3, 10, [4, 3, 3])
    card = (directory / "MODEL_CARD.md").read_text()
    assert f"{Checkpoint(trained_run).description.metrics['policy_value']:.4f}" in card


@pytest.mark.parametrize("num_candidates", [1, 2, 10, 999, 1000])
def test_served_candidates_are_the_policys_position_by_position(
    num_candidates: int, bundles: Path, trained_run: Path
) -> None:
    retriever = Retriever.open(bundles)
    rows = np.arange(200)
    picked = retriever.bundle.index.pick(retriever.contexts.embed(rows), num_candidates)
    served, scores = np.stack([one.rows for one in picked]), np.stack([one.scores for one in picked])
    policy, contexts, candidates = Checkpoint(trained_run).policy(), torch.from_numpy(rows), torch.from_numpy(served)
    best = best_items(policy, contexts, num_candidates)
    assert float(greedy_regret(best, logits_of(policy, contexts, candidates), candidates).max()) < 1e-5
    with torch.no_grad():
        trained = greedy_candidates(policy.double()(contexts), num_candidates)
    if num_candidates <= 10:  # float32 may swap ties further down
        assert (trained.numpy() == served).mean() > 0.99
    assert all(len(set(row)) == num_candidates for row in served.tolist())
    assert scores.dtype == np.float32


def test_contexts_of_other_rows_are_answered_otherwise(bundles: Path) -> None:
    retriever = Retriever.open(bundles)
    first, second = (retriever.retrieve(context_id, 10).item_ids for context_id in ("3", "4"))
    assert first != second


def test_regret_sees_a_pick_that_is_not_greedy() -> None:
    logits = torch.tensor([[[3.0, 2, 1, 0], [0, 1, 2, 3]]], dtype=torch.float64)
    best = Best(*logits.topk(2))
    for picked, wanted in (([0, 3], [0, 0]), ([1, 3], [1, 0]), ([0, 2], [0, 1])):
        regret = greedy_regret(best, logits[0, [0, 1], picked][None], torch.tensor([picked]))
        assert regret.tolist() == [wanted]


def test_the_check_goes_through_the_catalogue_in_float64(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.export_check.CHUNK", 300)  # of 1,000
    policy, contexts = Checkpoint(trained_run).policy(), torch.arange(20)
    best, candidates = (
        best_items(policy, contexts, 12),
        torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:240].view(20, 12),
    )
    picked = logits_of(policy, contexts, candidates)
    with torch.no_grad():
        logits = policy.double()(contexts)
    torch.testing.assert_close(best.logits, logits.topk(12).values)
    torch.testing.assert_close(logits.gather(2, best.items), best.logits)
    expert = torch.tensor(expert_of_position(12, logits.shape[1]))
    torch.testing.assert_close(picked, logits[torch.arange(20)[:, None], expert, candidates])


def test_exported_towers_with_features_give_torchs_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('video_id,feat\n0,"[27, 9]"\n1,[8]\n3,"[8, 9, 27]"\n')
    items = read_features(("0", "1", "2", "3"), path)
    policy = EarlyStageRanker(id_features(("x", "y", "z")), items, 2, 3, temperature=0.5)
    policy.initialise(1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tower, scale in ((policy.item_tower, 1.0), (policy.context_tower, 2.0)):
            write_tower(tmp_path / "tower.onnx", tower, scale)
            session = ort.InferenceSession(tmp_path / "tower.onnx")
            for rows in ([0], [2, 0, 1], [1, 1]):
                bags = {name: values[rows] for name, values in tower.features.bags.items()}
                expected = scale * tower(torch.tensor(rows)).numpy()
                np.testing.assert_allclose(session.run(None, bags)[0], expected, rtol=0, atol=1e-6)


def test_an_unknown_id_is_an_empty_bag(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("video_id,kind\n0,red\n1,blue\n")
    tower = EarlyStageRanker(id_features(("x",)), read_features(("0", "1"), path), 1, 3).item_tower
    write_tower(tmp_path / "tower.onnx", tower)
    session = ort.InferenceSession(tmp_path / "tower.onnx")
    found = session.run(None, {"id": np.array([[-1]]), "kind": np.array([[1]])})[0]
    np.testing.assert_allclose(found[0, 0], tower.weights()["kind"][1].detach().numpy(), rtol=0, atol=1e-6)


def test_nothing_is_published_when_what_is_served_is_not_what_was_trained(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_other_index(directory: Path, built: BuiltIndex) -> None:
        write_index(directory, built._replace(embeddings=-built.embeddings))

    monkeypatch.setattr(exporting, "write_index", write_other_index)
    with pytest.raises(Exception, match="golden queries"):
        export(trained_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_versions_count_up_and_leftovers_go(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / f"{TEMPORARY}3-1").mkdir()
    assert export(trained_run, tmp_path) == tmp_path / "8"
    assert {path.name for path in tmp_path.iterdir()} == {"7", "8", ".lock"}


def test_a_checkpoint_directory_can_be_exported(trained_run: Path, tmp_path: Path) -> None:
    assert export(checkpoints(trained_run)[0], tmp_path / "new" / "root").name == "1"


def test_bad_runs_are_one_line(tmp_path: Path, trained_run: Path, refused: Callable[[int], str]) -> None:
    def command(*arguments: object) -> int:
        return main(Serving, "python -m serving", ["export", *map(str, arguments)], refusals=(UsageError,))

    assert "holds no checkpoint" in refused(command(tmp_path))
    with sole_writer(tmp_path):
        assert "another process is writing there" in refused(command(trained_run, "--out", tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(command(trained_run, "--out", tmp_path / "file"))
