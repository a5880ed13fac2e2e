"""Runs, checkpoints and the command line of the trainer."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint, checkpoints, keep_last_and_best
from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.learner import NonFiniteLossError, step_metrics
from esr_trainer.metrics import METRICS
from esr_trainer.preparation import prepare
from esr_trainer.run import train
from esr_trainer.system import system_of
from esr_trainer.training import greedy_values
from esr_trainer.whole_directory import sole_writer, written_whole
from serving import Retriever
from serving.export import export
from tests.conftest import ROOT, last_json, run_module

OF_LOGS = {"held_out_recall", "held_out_log_loss", "ips_value"}
SMALL = ["--environment", "synthetic", "--candidates", "10", "--experts", "2"]


def run(out: Path, *options: str) -> Path:
    assert command_line([*SMALL, *options, "--out", str(out)]) == 0
    return out


def same_checkpoint(one: Path, other: Path) -> None:
    for name in ("policy", "optimizer", "state"):
        first, second = (load_file(Checkpoint(run).directory / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), f"{name}: {key}"


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_every_estimator_learns(estimator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # One popular list is worth about 5.5 here, random candidates about 5.0.
    options = ["--estimator", estimator, "--steps", "200", "--learning-rate", "0.03", "--entropy", "0", "--json"]
    run(tmp_path / "run", *options)
    result = last_json(capsys.readouterr().out)
    assert result["policy_value"] > result["initial_policy_value"] + 0.1
    assert result["steps"] == 200
    assert result["steps_per_second"] > 0
    assert Path(result["checkpoint"]).is_dir()
    assert result["uniform_policy_value"] < result["popularity_policy_value"] < result["optimal_policy_value"]


def test_output_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", "--steps", "3")
    out, err = capsys.readouterr()
    for word in ("uniform", "popularity", "before training", "after training", "optimum", "checkpoint:", "next:"):
        assert word in out
    assert "world: synthetic world" in err
    assert "step/s" in err


def test_seed_decides_everything(tmp_path: Path) -> None:
    one, again = (run(tmp_path / name, "--steps", "20", "--seed", "7") for name in ("one", "again"))
    same_checkpoint(one, again)
    other = run(tmp_path / "other", "--steps", "20", "--seed", "8")
    with pytest.raises(AssertionError):
        same_checkpoint(one, other)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--steps", "40", "--seed", "7", "--checkpoint-every", "15")
    halves = run(tmp_path / "halves", "--steps", "25", "--seed", "7", "--checkpoint-every", "15")
    run(halves, "--steps", "40", "--seed", "7", "--checkpoint-every", "15")
    same_checkpoint(whole, halves)
    assert Checkpoint(whole).description.metrics == Checkpoint(halves).description.metrics


@pytest.mark.parametrize(
    "options",
    [
        ["--estimator", "v", "--variance-reduction", "baseline"],
        ["--estimator", "top1", "--variance-reduction", "grpo"],
        ["--estimator", "top1", "--variance-reduction", "control-variate", "--lsr", "uniform"],
    ],
)
def test_variance_reduction_learns_and_resumes(options: list[str], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *options, "--steps", "200", "--checkpoint-every", "100", "--learning-rate", "0.03")
    halves = run(tmp_path / "halves", *options, "--steps", "80", "--checkpoint-every", "100", "--learning-rate", "0.03")
    run(halves, *options, "--steps", "200", "--checkpoint-every", "100", "--learning-rate", "0.03")
    same_checkpoint(whole, halves)
    metrics = Checkpoint(whole).description.metrics
    assert metrics["policy_value"] > metrics["initial_policy_value"] + 0.1


ENDLESS = ["--steps", "1000000"]
"""Of a run that is killed: it cannot end before, however late the signal is."""


def killed_at(step: int, out: Path, *options: str) -> list[str]:
    """Kill a run once it has a checkpoint of a step or of a later one; the steps with which it is to end."""
    command = [sys.executable, "-m", "esr_trainer", *SMALL, *ENDLESS, *options, "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not checkpoints(out) or int(checkpoints(out)[-1].name) < step):
        time.sleep(0.002)
    time.sleep(random.random() / 20)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was killed before it ended"
    return ["--steps", str(int(checkpoints(out)[-1].name) + 20)]


def test_killed_runs_resume_bit_for_bit(tmp_path: Path) -> None:
    options = ["--checkpoint-every", "20", "--evaluate-every", "20"]
    killed = tmp_path / "killed"
    killed_at(20, killed, *options)
    steps = killed_at(60, killed, *options)
    run(killed, *options, *steps)
    same_checkpoint(run(tmp_path / "whole", *options, *steps), killed)
    assert not list((killed / "checkpoints").glob(".*")), "what the killed process left unfinished is gone"


def test_a_run_from_anothers_state_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    """Killed at a random moment, it goes on by itself from --out."""
    options = ["--checkpoint-every", "20", "--variance-reduction", "grpo"]
    first = run(tmp_path / "first", *options, "--steps", "40", "--evaluate-every", "7", "--patience", "90")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    branch = tmp_path / "branch"
    steps = killed_at(40, branch, *options, "--resume", str(first))
    run(branch, *options, *steps)
    whole = run(tmp_path / "whole", *options, *steps)
    same_checkpoint(whole, branch)
    from_checkpoint = run(tmp_path / "other", *options, *steps, "--resume", str(checkpoints(first)[-1]))
    same_checkpoint(whole, from_checkpoint)
    assert int(checkpoints(from_checkpoint)[-1].name) == int(steps[-1])
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before, "the first run is left as it was"


def test_what_cannot_get_its_name_says_why(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "something").touch()
    with pytest.raises(FileExistsError, match="already there"), written_whole(tmp_path / "held"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), written_whole(tmp_path / "file"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"held", "file"}


def test_a_run_from_anothers_state_holds_that_state_at_once(tmp_path: Path) -> None:
    first = run(tmp_path / "first", "--steps", "6")
    config = Checkpoint(first).config.model_copy(update={"steps": 9})
    trainer, branch = prepare(config, tmp_path / "branch", first)
    train(trainer, branch, lambda _: None, lambda: True)
    same_checkpoint(first, branch)


def test_what_cannot_be_resumed_is_refused_in_one_line(tmp_path: Path, refused: Callable[[int], str]) -> None:
    first = run(tmp_path / "first", "--steps", "2")
    again = [*SMALL, "--steps", "4", "--out"]
    for resume in ("never", str(first)):
        assert "holds a run: only --resume auto" in refused(command_line([*again, str(first), "--resume", resume]))
    new = str(tmp_path / "new")
    for resume, options, says in (
        (first, ["--seed", "5"], f"resume ({first}) has seed 0, not 5; only steps, data, evaluate_every"),
        (first, ["--world-seed", "5"], "has world_seed 0, not 5"),
        (first, ["--steps", "1"], "steps (1): the run has already done 2"),
        (tmp_path, [], "holds no checkpoint"),
    ):
        assert says in refused(command_line([*again, new, "--resume", str(resume), *options]))
        assert not Path(new).exists()
    assert command_line([*again, new, "--resume", "never"]) == 0


def test_a_run_from_before_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    out = run(tmp_path / "run", "--steps", "2")
    written = json.loads((out / "config.json").read_text())
    del written["patience"]
    (out / "config.json").write_text(json.dumps(written))
    run(out, "--steps", "3")
    assert checkpoints(out)[-1].name == "00000003"


def test_sigterm_saves_and_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "esr_trainer",
        *SMALL,
        *ENDLESS,
        "--checkpoint-every",
        "20",
        "--out",
        str(out),
        "--json",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not checkpoints(out):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert Checkpoint(out).description.step == last_json(stdout)["steps"] < 1_000_000
    assert "go on with the same options" in stderr


def test_only_the_last_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    for step, value in ((10, 3.0), (20, 7.0), (30, 5.0), (100000000, 6.0)):
        directory = tmp_path / "checkpoints" / f"{step:08d}"
        directory.mkdir(parents=True)
        (directory / "checkpoint.json").write_text(json.dumps({"metrics": {"policy_value": value}}))
    keep_last_and_best(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000020", "100000000"]


def test_a_checkpoints_policy_value_is_of_its_step(tmp_path: Path) -> None:
    out = run(tmp_path / "run", "--steps", "40", "--checkpoint-every", "15", "--evaluate-every", "20")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [15, 20, 30, 40]
    assert all({"step", *METRICS} - OF_LOGS == row.keys() for row in rows)
    assert len({row["loss"] for row in rows}) == 4, "each line is of its own step"
    world = open_world("synthetic", None, 0)
    for path in checkpoints(out):
        checkpoint = Checkpoint(path)
        values = greedy_values(world, system_of(checkpoint.config, world), checkpoint.policy())
        assert float(values.mean()) == pytest.approx(checkpoint.description.metrics["policy_value"], abs=1e-5)


def test_what_a_user_puts_beside_the_checkpoints_stays(tmp_path: Path) -> None:
    out = run(tmp_path / "run", "--steps", "4", "--checkpoint-every", "2")
    (out / "checkpoints" / "00000004-backup").mkdir()
    run(out, "--steps", "8", "--checkpoint-every", "2")
    assert (out / "checkpoints" / "00000004-backup").is_dir()
    assert checkpoints(out)[-1].name == "00000008"


def test_two_processes_do_not_write_to_one_run(tmp_path: Path, refused: Callable[[int], str]) -> None:
    out = run(tmp_path / "run", "--steps", "2", "--checkpoint-every", "7")
    again = [*SMALL, "--steps", "4", "--checkpoint-every", "7", "--out", str(out)]
    with sole_writer(out):
        assert "another process is writing there" in refused(command_line(again))
    assert command_line(again) == 0


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "esr_trainer", *SMALL, "--steps", "2", "--out", str(out)]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command]  # files of 20 KiB at most
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: checkpoint (")
    assert "Traceback" not in done.stderr
    assert not any(path.is_dir() for path in (out / "checkpoints").glob("*"))


def test_yaml_is_below_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("environment: synthetic\nsteps: 9\ncandidates: 7\n")
    assert command_line(["--steps", "2", "--config", str(path), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert last_json(capsys.readouterr().out)["steps"] == 2
    assert Checkpoint(tmp_path / "run").config.candidates == 7


def test_the_paper_preset_gives_way_to_options(tmp_path: Path) -> None:
    for lsr, estimator, expected in (("optimal", "v", 0.1), ("optimal", "ca", 0.01), ("uniform", "top1", 0.1)):
        config = TrainConfig.model_validate({"preset": "paper", "lsr": lsr, "estimator": estimator, "init_std": 0.5})
        assert (config.learning_rate, config.init_std, config.optimizer) == (expected, 0.5, "adagrad")
        assert (config.candidates, config.experts) == (10, 1)
    resumed = run(tmp_path / "run", "--preset", "paper", "--steps", "2")
    run(resumed, "--preset", "paper", "--steps", "4")
    assert Checkpoint(resumed).config.optimizer == "adagrad"


def test_metrics_of_every_evaluation_survive_a_resume(tmp_path: Path) -> None:
    options = ["--evaluate-every", "5", "--checkpoint-every", "10"]
    out = run(tmp_path / "run", *options, "--steps", "10")
    with (out / "metrics.jsonl").open("a") as file:  # what a killed run wrote after its last checkpoint
        file.write('{"step": 15, "loss": 1.0}\n{"step": 20, "lo')
    run(out, *options, "--steps", "20")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert all({"step", *METRICS} - OF_LOGS == row.keys() for row in rows)
    assert rows[-1]["policy_value"] == Checkpoint(out).description.metrics["policy_value"]
    assert 1 <= rows[-1]["effective_items"] <= 1000
    assert list((out / "tensorboard").glob("events.*"))


def test_effective_items_of_a_uniform_and_of_a_sure_policy() -> None:
    logits = torch.stack([torch.zeros(8), torch.tensor([100.0, *[0.0] * 7])])[:, None]
    assert step_metrics(1.0, 5.0, logits)["effective_items"] == pytest.approx((8 + 1) / 2)


def test_an_entropy_bonus_keeps_more_items_in_play(tmp_path: Path) -> None:
    effective = []
    for entropy in ("0", "10"):
        options = ["--estimator", "ca-poisson", "--init-std", "1", "--entropy", entropy, "--items", "100"]
        out = run(tmp_path / entropy, *options, "--contexts", "50", "--steps", "100")
        effective.append(Checkpoint(out).description.metrics["effective_items"])
    assert effective[1] > 1.2 * effective[0]


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--learning-rate", "1e-9", "--evaluate-every", "2", "--patience", "3", "--steps", "500", "--json"]
    run(tmp_path / "run", *options)
    assert last_json(capsys.readouterr().out)["steps"] < 100


def test_default_run_directories_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("1", "2"):
        assert command_line([*SMALL, "--steps", "1", "--json"]) == 0
        assert Path(last_json(capsys.readouterr().out)["run"]) == Path("runs") / expected
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--estimator", "foo"], "estimator (foo)"),
        (["--candidates", "1001", "--environment", "synthetic"], "candidates (1001) exceeds the data's 1000 items"),
        (["--candidates", "3", "--slate", "4"], "slate (4) exceeds candidates (3)"),
        (["--steps", "0"], "steps (0)"),
        (["--steps", "many"], "steps (many)"),
        (["--learning-rate", "-1"], "learning_rate (-1)"),
        (["--wrong", "1"], "--wrong"),
        (["--temperature", "inf"], "temperature (inf)"),
        (["--seed", str(2**64)], "seed (18446744073709551616)"),
        (["--config"], "config"),
        (["--data", "missing.npz"], "data (missing.npz) is not a file"),
        (["--config", "missing.yaml"], "config (missing.yaml)"),
        (["--item-features", "missing.csv"], "features (missing.csv) is not a file"),
        (["--text", "title", "--environment", "synthetic"], "text (title): no table of features has any text in such"),
        (["--text-buckets", "0"], "text_buckets (0)"),
        (["--data", "pyproject.toml"], "data (pyproject.toml)"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], str]
) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.chdir(tmp_path)
    assert says in refused(command_line(options))
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("text", ["steps: [1", "- steps", "unknown: 1", "steps: -1", "\xff"])
def test_a_bad_configuration_file_is_one_line(text: str, tmp_path: Path, refused: Callable[[int], str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    refused(command_line(["--config", str(path)]))


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path, refused: Callable[[int], str]) -> None:
    out = run(tmp_path / "run", "--steps", "3")
    assert "seed 0, not 5" in refused(command_line([*SMALL, "--steps", "3", "--seed", "5", "--out", str(out)]))
    smaller = command_line([*SMALL, "--steps", "3", "--items", "500", "--out", str(out)])
    assert "items None, not 500" in refused(smaller)
    assert "steps (2)" in refused(command_line([*SMALL, "--steps", "2", "--out", str(out)]))
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no run" in refused(command_line([*SMALL, "--out", str(tmp_path)]))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "description"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    out = run(tmp_path / "run", "--steps", "3")
    path = checkpoints(out)[-1] / ("checkpoint.json" if damage == "description" else "policy.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:100])
    with pytest.raises(UsageError, match=r"checkpoint \("):
        Checkpoint(out)


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    directory = checkpoints(run(tmp_path / "run", "--steps", "3"))[-1]
    assert {path.suffix for path in directory.iterdir()} == {".json", ".npz", ".safetensors"}
    for path in directory.glob("*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name].dtype == np.int64 for name in archive.files)
    assert json.loads((directory / "checkpoint.json").read_text())["schema_version"] == 1


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = TrainConfig(environment="synthetic", candidates=5, experts=1, steps=10, checkpoint_every=2)
    trainer, directory = prepare(config, tmp_path / "run")

    def break_world(trainer_: object) -> None:
        if trainer.step == 5:
            trainer.world.expected_reward.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match=r"step 6: loss of estimator top1 is nan; last good .*00000004"):
        train(trainer, directory, break_world, lambda: False)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    trainer, _ = prepare(TrainConfig(environment="synthetic", candidates=5, experts=1), tmp_path / "run")
    before = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    next(trainer.policy.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="step 1: gradient of estimator top1"):
        trainer.advance()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.policy.parameters(), strict=True))


def test_features_train_resume_and_are_served(shared: Path, tmp_path: Path) -> None:
    kuairec = shared / "data" / "kuairec"
    options = ["--data", str(kuairec / "small_matrix_gt2.npz"), "--experts", "2", "--candidates", "10"]
    options += ["--context-features", str(kuairec / "user_features.csv")]
    options += ["--item-features", str(kuairec / "item_categories.csv"), "--out", str(tmp_path / "run")]
    assert command_line([*options, "--steps", "2"]) == 0
    assert command_line([*options, "--steps", "4"]) == 0
    policy = Checkpoint(tmp_path / "run").policy()
    assert "user_active_degree" in policy.context_tower.features.bags
    export(tmp_path / "run", tmp_path / "bundles")  # publishes only if what is served is what was trained
    retriever = Retriever.open(tmp_path / "bundles")
    assert len(retriever.retrieve("14", 10).item_ids) == 10
    assert "user_active_degree" in retriever.bundle.context_features
    assert policy.item_tower.features.bags["feat"].shape == (3327, 4)


def test_the_help_has_every_option_in_a_section() -> None:
    told = run_module("esr_trainer", "--help").stdout
    parts = re.split(r"^([a-z][^\n]*):\n", told, flags=re.M)[1:]
    places = {
        option: title
        for title, text in zip(parts[::2], parts[1::2], strict=True)
        for option in re.findall(r"^  (--[a-z.-]+)", text, re.M)
    }
    assert places["--sets"] == "two-stage-ips"
    assert places["--pairs"] == "pg-ret"
    assert places["--relevance.oracle"] == "relevance options"
    assert places["--profile"] == "the run directory, several runs, several processes"
    assert [option for option, title in places.items() if title == "options"] == ["--json"]
    assert len(places) > len(TrainConfig.model_fields)
