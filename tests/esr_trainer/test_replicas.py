"""Several seeds side by side: each is the run that it is alone, up to float rounding."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint, checkpoints
from esr_trainer.config import TrainConfig
from esr_trainer.learner import NonFiniteLossError
from esr_trainer.preparation import prepare
from esr_trainer.replicas import mean_over_seeds, prepare_replicas
from esr_trainer.run import train, train_side_by_side
from offline_eval.replay.compare import Question, compare
from serving.export import export
from tests.conftest import last_json

SMALL = ["--environment", "synthetic", "--candidates", "6", "--batch", "32"]


def run(out: Path, *options: object) -> Path:
    assert command_line([*SMALL, *map(str, options), "--out", str(out)]) == 0
    return out


def same_up_to_rounding(one: Path, other: Path) -> None:
    assert Checkpoint(one).description.step == Checkpoint(other).description.step
    for name in ("policy", "optimizer", "state"):
        first, second = (load_file(Checkpoint(path).directory / f"{name}.safetensors") for path in (one, other))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            torch.testing.assert_close(tensor, second[key], rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
        if name == "state":
            assert torch.equal(first["generator"], second["generator"]), "the same draws"


@pytest.mark.parametrize(
    "options",
    [
        "--estimator top1 --experts 1",
        "--estimator ca-poisson --experts 2 --optimizer adagrad",
        "--estimator ca --experts 2 --slate 2 --lsr noisy",
        "--estimator v --experts 2 --variance-reduction baseline",
        "--estimator v-swr --experts 1 --variance-reduction grpo --slate 2",
        "--estimator top1 --experts 2 --variance-reduction control-variate --lsr uniform --slate 2",
    ],
)
def test_each_seed_is_the_run_that_it_is_alone(options: str, tmp_path: Path) -> None:
    together = run(tmp_path / "together", *options.split(), "--steps", "12", "--seed", "5", "--seeds", "3")
    assert sorted(path.name for path in together.iterdir()) == ["seed-5", "seed-6", "seed-7"]
    for seed in (5, 7):
        alone = run(tmp_path / f"alone-{seed}", *options.split(), "--steps", "12", "--seed", seed)
        same_up_to_rounding(together / f"seed-{seed}", alone)
    with pytest.raises(AssertionError):
        same_up_to_rounding(together / "seed-5", together / "seed-7")


def test_runs_at_different_steps_catch_up_and_go_on_together(tmp_path: Path) -> None:
    """As after a kill between two checkpoints: seed 0 was saved at 10, seed 1 at 20, seed 2 not at all."""
    out, options = tmp_path / "out", ["--experts", "1", "--variance-reduction", "grpo"]
    run(out / "seed-0", *options, "--steps", "10")
    run(out / "seed-1", *options, "--steps", "20", "--seed", "1")
    run(out, *options, "--steps", "25", "--seeds", "3")
    for seed in range(3):
        alone = run(tmp_path / f"alone-{seed}", *options, "--steps", "25", "--seed", seed)
        same_up_to_rounding(out / f"seed-{seed}", alone)


def test_a_directory_of_replicas_can_be_resumed_from(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--steps", "12", "--seeds", "2")
    first = run(tmp_path / "first", "--steps", "6", "--seeds", "2")
    branch = run(tmp_path / "branch", "--steps", "12", "--seeds", "2", "--resume", first)
    for name in ("seed-0", "seed-1"):
        same_up_to_rounding(whole / name, branch / name)
    assert checkpoints(first / "seed-0")[-1].name == "00000006"


def test_patience_ends_each_seed_where_it_would_alone(tmp_path: Path) -> None:
    options = ["--steps", "60", "--learning-rate", "1e-3", "--evaluate-every", "2", "--patience", "2", "--batch", "8"]
    together = run(tmp_path / "together", *options, "--seeds", "3")
    steps = [Checkpoint(together / f"seed-{seed}").description.step for seed in range(3)]
    assert len(set(steps)) > 1, "the seeds differ in when they end"
    for seed in range(3):
        same_up_to_rounding(together / f"seed-{seed}", run(tmp_path / f"alone-{seed}", *options, "--seed", seed))
    run(together, *options, "--seeds", "3")
    again = [Checkpoint(together / f"seed-{seed}").description.step for seed in range(3)]
    assert again == steps, "what patience ended stays ended"


def test_what_is_printed_and_who_can_open_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(tmp_path / "out", "--steps", "4", "--seed", "3", "--seeds", "2", "--json")
    printed = capsys.readouterr()
    result = last_json(printed.out)
    values = [each["policy_value"] for each in result["seeds"]]
    assert result["policy_value"] == pytest.approx(sum(values) / 2)
    assert result["policy_value_standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert [each["seed"] for each in result["seeds"]] == [3, 4]
    assert [Path(each["run"]) for each in result["seeds"]] == [out / "seed-3", out / "seed-4"]
    assert "standard error" in printed.out
    assert "8/8 steps" in printed.err
    row = json.loads((out / "seed-4" / "metrics.jsonl").read_text())
    assert row["policy_value"] == values[1]
    assert len(compare(Question([out / "seed-3", out / "seed-4"])).judged) == 3
    assert export(out / "seed-4", tmp_path / "bundles").is_dir()


def test_mean_and_standard_error_by_hand() -> None:
    mean, error = mean_over_seeds([1.0, 2.0, 3.0, 6.0])  # deviations -2, -1, 0, 3: variance 14 / 3
    assert mean == 3
    assert error == pytest.approx((14 / 3 / 4) ** 0.5)


def test_a_gradient_that_is_not_finite_names_the_run_of_its_seed(tmp_path: Path) -> None:
    config = TrainConfig(environment="synthetic", candidates=5, experts=1, steps=10, checkpoint_every=2)
    _, trainers, runs = prepare_replicas(config, 2, tmp_path / "out", "auto")

    def break_one(_: object) -> None:
        if trainers[1].step == 3:
            next(trainers[1].policy.parameters()).register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(NonFiniteLossError, match=r"step 4: gradient of estimator top1 .* last good .*seed-1.*00000002"):
        train_side_by_side(trainers, runs, break_one, lambda: False)


def test_a_directory_that_holds_something_else_is_refused(tmp_path: Path, refused: Callable[[int], str]) -> None:
    alone = run(tmp_path / "alone", "--steps", "1")
    again = [*SMALL, "--steps", "2", "--seeds", "2", "--out"]
    assert "holds the run of one seed" in refused(command_line([*again, str(alone)]))
    assert "holds alone: --seeds (2)" in refused(command_line([*again, str(tmp_path)]))
    assert "seeds (0)" in refused(command_line([*SMALL, "--seeds", "0"]))


@pytest.mark.parametrize("stopped_at", [4, 5])
def test_a_stop_costs_no_patience(stopped_at: int, tmp_path: Path) -> None:
    """Neither right after an evaluation nor between two of them."""
    config = TrainConfig(
        environment="synthetic", candidates=5, experts=1, steps=9, evaluate_every=2, learning_rate=1e-9
    )
    trainer, out = prepare(config, tmp_path / "run")
    train(trainer, out, lambda _: None, lambda: trainer.step == stopped_at)
    assert trainer.metrics["evaluations_since_best"] == 2
    trainer, out = prepare(config, out)
    train(trainer, out, lambda _: None, lambda: True)
    assert trainer.metrics["evaluations_since_best"] == 2
