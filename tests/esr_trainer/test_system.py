"""Late-stage rankers of a run: fitted, brought as a file, or a function."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import main
from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.interaction import interact
from esr_trainer.system import read_ranker, system_of
from esr_trainer.training import start
from offline_eval.__main__ import OfflineEval
from offline_eval.verdict import EXIT_CODES
from tests.conftest import last_json
from tests.esr_trainer.test_onnx_ranker import TABLE, by_rows, of_nan
from tests.esr_trainer.test_training import same_checkpoint

SMALL = ["--environment", "synthetic", "--contexts", "40", "--items", "30", "--candidates", "5", "--experts", "2"]
LEARNED = ["--lsr", "learned", "--lsr-interactions", "2000"]


def run(out: Path, *options: str) -> Path:
    assert command_line([*SMALL, *options, "--out", str(out)]) == 0
    return out


def compare(*arguments: object) -> int:
    return main(OfflineEval, "python -m offline_eval", ["compare", *map(str, arguments)])


def test_a_run_with_a_learned_ranker_resumes_and_is_judged_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "whole", *LEARNED, "--steps", "60", "--checkpoint-every", "50")
    halves = run(tmp_path / "halves", *LEARNED, "--steps", "30", "--checkpoint-every", "50")
    run(halves, *LEARNED, "--steps", "60", "--checkpoint-every", "50")
    same_checkpoint(whole, halves)
    assert read_ranker(whole) == read_ranker(halves)
    metrics = Checkpoint(whole).description.metrics
    capsys.readouterr()
    assert compare(whole, halves, "--json") == 0
    judged = last_json(capsys.readouterr().out)["judged"]
    assert judged[1]["policy_value"]["mean"] == pytest.approx(metrics["policy_value"])
    assert compare(whole, "--lsr", "optimal", "--json") == 0
    by_oracle = last_json(capsys.readouterr().out)["judged"][1]["policy_value"]["mean"]
    assert by_oracle > metrics["policy_value"], "the oracle makes the best of the same candidates"


def test_a_fitted_ranker_is_used_again_by_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[int], str]
) -> None:
    first = run(tmp_path / "first", *LEARNED, "--steps", "20")
    file = Checkpoint(first).directory / "ranker.safetensors"
    for name, path in (("by-run", first), ("by-file", file)):
        again = run(tmp_path / name, "--lsr", str(path), "--steps", "20")
        same_checkpoint(first, again)
    assert compare(first, again) == 0, "one ranker, however it was named"
    other = run(tmp_path / "other", *LEARNED, "--world-seed", "0", "--lsr-interactions", "1000", "--steps", "1")
    capsys.readouterr()
    assert "has lsr of SHA-256" in refused(compare(first, other))
    oracle = run(tmp_path / "oracle", "--steps", "1")
    assert "is a run with an oracle" in refused(command_line([*SMALL, "--lsr", str(oracle)]))


def test_an_onnx_ranker_decides_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[int], str]
) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(by_rows())
    options = ["--lsr", str(path), "--steps", "20", "--learning-rate", "0.03"]
    out = run(tmp_path / "run", *options)
    trained = Checkpoint(out)
    world = open_world("synthetic", None, 0, contexts=40, items=30)
    system = system_of(trained.config, world, trained.ranker())
    scores = system.scores(torch.tensor([7]), torch.tensor([[3, 1]]))
    assert scores.tolist() == [TABLE[[3, 1]].tolist()]

    moved = path.rename(tmp_path / "moved.onnx")
    options[1] = str(moved)
    run(out, *[*options, "--steps", "30"])
    capsys.readouterr()
    # the checkpoint keeps the ranker, which prefers the same items for everybody: so does the ESR, and is rejected
    assert compare(out, "--json") == EXIT_CODES["reject"]
    judged = last_json(capsys.readouterr().out)["judged"][1]["policy_value"]["mean"]
    assert judged == pytest.approx(Checkpoint(out).description.metrics["policy_value"])
    moved.write_bytes(by_rows() + b"\x32\x00")  # the same model, of other bytes
    assert "not of SHA-256" in refused(command_line([*SMALL, *options, "--steps", "30", "--out", str(out)]))


def test_rankers_that_cannot_be_used_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nan.onnx").write_bytes(of_nan())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "text.safetensors").write_text("mine")
    before = sorted(tmp_path.iterdir())
    for given, says in (
        ("optmal", "lsr (optmal) is none of optimal, noisy, uniform, anti, learned, and no file"),
        ("missing.onnx", "lsr (missing.onnx) is none of"),
        ("nan.onnx", "scores are not all finite"),
        ("notes.txt", "lsr (notes.txt) is neither an .onnx nor a .safetensors file"),
        ("text.safetensors", "it holds no reward model"),
        (".", "run (.) holds no checkpoint"),
    ):
        assert says in refused(command_line([*SMALL, "--lsr", given]))
    learned = ["--lsr", "learned", "--variance-reduction", "control-variate"]
    assert "vanishes for lsr learned" in refused(command_line([*SMALL, *learned]))
    assert sorted(tmp_path.iterdir()) == before


def test_a_function_ranks_in_process() -> None:
    # It puts items with an even row first; the ESR learns that of the others none is ever shown.
    asked = []

    def even_first(contexts: Tensor, items: Tensor) -> Tensor:
        asked.append((contexts.shape, items.shape))
        return (items % 2 == 0).float()

    world = open_world("synthetic", None, 0, contexts=40, items=30)
    config = TrainConfig(candidates=5, experts=1, batch=16)
    trainer = start(config, world, system_of(config, world)._replace(scores=even_first))
    asked.clear()
    trainer.advance()
    assert asked == [((16,), (16, 5))]
    assert trainer.metrics["uniform_policy_value"] < trainer.metrics["optimal_policy_value"]


def test_the_control_variate_goes_by_the_rankers_own_scores() -> None:
    world = open_world("synthetic", None, 0, contexts=40, items=30)
    config = TrainConfig(lsr="noisy", variance_reduction="control-variate", candidates=5, experts=1, batch=16)
    losses = []
    for scores in (world.scores, lambda contexts, items: 0 * world.scores(contexts, items)):
        trainer = start(config, world, system_of(config, world)._replace(scores=scores))
        trainer.baseline.mean.fill_(1.0)
        logits = trainer.policy(torch.arange(16))
        round_ = interact(world, system_of(config, world), torch.arange(16), logits, torch.Generator().manual_seed(0))
        read_baseline = trainer.baseline.read_and_update
        losses.append(trainer.weighted_log_prob(torch.arange(16), logits, round_, read_baseline))
    assert not torch.equal(*losses)
