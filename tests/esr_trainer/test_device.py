"""Where a run computes: on every device that is here, and with nothing made on another by default."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.config import V_FAMILY, EstimatorName, TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.learner import take_step
from esr_trainer.learning_rate import greedy_propensity
from esr_trainer.policy_value import optimal_value, popularity_value, uniform_value
from esr_trainer.preparation import prepare
from esr_trainer.system import system_of
from esr_trainer.training import greedy_values
from offline_eval.replay.compare import Question, compare

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
SMALL = ["--environment", "synthetic", "--candidates", "6", "--batch", "32", "--experts", "2"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("estimator", ["top1", "ca-poisson"])
def test_a_run_learns_resumes_and_is_opened_without_its_device(device: str, estimator: str, tmp_path: Path) -> None:
    options = [*SMALL, "--device", device, "--estimator", estimator, "--learning-rate", "0.03"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for out, steps in ((whole, "60"), (halves, "30"), (halves, "60")):
        assert command_line([*options, "--steps", steps, "--out", str(out)]) == 0
    checkpoint = Checkpoint(halves)
    metrics = checkpoint.description.metrics
    assert metrics["policy_value"] > metrics["initial_policy_value"]
    assert metrics["policy_value"] == pytest.approx(Checkpoint(whole).description.metrics["policy_value"], abs=1e-2)
    world = open_world("synthetic", None, 0)
    system = system_of(checkpoint.config.model_copy(update={"device": "cpu"}), world)
    value = greedy_values(world, system, checkpoint.policy()).mean()
    assert float(value) == pytest.approx(metrics["policy_value"], abs=1e-3)
    assert compare(Question([halves])).judged[1].policy_value.mean == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize(
    ("estimator", "reduction", "experts"),
    [
        *((name, "baseline" if name in V_FAMILY else "control-variate", 2) for name in sorted(ESTIMATORS)),
        ("ca", "grpo", 1),
        ("ca-poisson", "grpo", 1),
    ],
)
def test_nothing_is_made_on_the_default_device(
    estimator: EstimatorName, reduction: str, experts: int, tmp_path: Path
) -> None:
    """With a default device that holds no numbers, a tensor that was made without naming one breaks the step."""
    given = {"environment": "synthetic", "estimator": estimator, "variance_reduction": reduction, "experts": experts}
    given |= {"lsr": "noisy", "candidates": 6, "slate": 2, "batch": 16, "evaluate_every": 1}
    trainer, run = prepare(TrainConfig.model_validate(given), tmp_path / "run")
    with torch.device("meta"):
        trainer.advance()
        trainer.evaluate()
        take_step([trainer], trainer.optimizer)
        greedy_propensity(trainer.world, trainer.system, torch.Generator("cpu"))
        for value in (uniform_value, popularity_value, optimal_value):
            value(trainer.world, trainer.system)
    assert all(math.isfinite(value) for value in trainer.metrics.values())
    trainer.save(run)


def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    assert "device (cuda)" in refused(command_line([*SMALL, "--device", "cuda", "--out", str(out)]))
    assert not out.exists()
    assert "device (tpu)" in refused(command_line([*SMALL, "--device", "tpu"]))


def test_features_are_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "f.csv").write_text("id,colour\n0,red\n")
    says = refused(command_line([*SMALL, "--device", "cuda", "--item-features", str(tmp_path / "f.csv")]))
    assert "are looked up on the cpu alone" in says


def test_a_run_does_not_change_its_device(tmp_path: Path, refused: Callable[[int], str]) -> None:
    out = tmp_path / "run"
    assert command_line([*SMALL, "--steps", "2", "--out", str(out)]) == 0
    for path in (out / "config.json", Checkpoint(out).directory / "checkpoint.json"):
        written = json.loads(path.read_text())
        (written if path.name == "config.json" else written["config"])["device"] = "cuda"
        path.write_text(json.dumps(written))
    again = [*SMALL, "--steps", "4", "--out"]
    assert "device cuda, not cpu" in refused(command_line([*again, str(out)]))
    assert "device cuda, not cpu" in refused(command_line([*again, str(tmp_path / "new"), "--resume", str(out)]))
    assert Checkpoint(out).policy().context_tower.weights()["id"].device.type == "cpu", "it can still be opened"
