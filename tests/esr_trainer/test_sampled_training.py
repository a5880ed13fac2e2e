"""Training over a large catalogue: what it learns, what a step touches, and that it goes on bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.config import TrainConfig, misuse_of_sample
from esr_trainer.features import Features, id_features
from esr_trainer.lazy_rows import LazyAdagrad, LazyAdam, rows_of
from esr_trainer.policy import greedy_candidates
from esr_trainer.preparation import prepare
from esr_trainer.sampled_training import SampledTrainer, best_of_all
from esr_trainer.towers import EarlyStageRanker, Tower
from esr_trainer.training import Trainer
from esr_trainer.vocabularies import Categories
from tests.conftest import last_json
from tests.esr_trainer.test_training import same_checkpoint

SMALL = ["--environment", "synthetic", "--items", "600", "--contexts", "50", "--candidates", "10", "--experts", "2"]
SAMPLED = [*SMALL, "--catalogue", "sampled", "--catalogue-head", "32", "--catalogue-tail", "60", "--index-every", "12"]


def run(out: Path, *options: str) -> Path:
    assert command_line([*SAMPLED, *options, "--out", str(out)]) == 0
    return out


def sampled(out: Path, **options: object) -> SampledTrainer:
    settings = {"environment": "synthetic", "items": 600, "contexts": 50, "candidates": 10, "catalogue": "sampled"}
    trainer, _ = prepare(TrainConfig.model_validate({**settings, "catalogue_tail": 60, **options}), out)
    assert isinstance(trainer, SampledTrainer)
    return trainer


@pytest.mark.parametrize("estimator", ["top1", "ca", "ca-poisson", "v-swr", "v"])
def test_every_estimator_learns(estimator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate = "0.03" if estimator[0] == "v" else "0.01"
    run(tmp_path, "--estimator", estimator, "--steps", "100", "--learning-rate", rate, "--batch", "64", "--json")
    result = last_json(capsys.readouterr().out)
    assert result["policy_value"] > result["initial_policy_value"] + 0.15


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_a_resumed_run_is_the_run_that_never_stopped(optimizer: str, tmp_path: Path) -> None:
    """It is stopped while an index that was begun at step 24 waits for step 36."""
    options = ["--seed", "7", "--checkpoint-every", "14", "--batch", "16", "--optimizer", optimizer]
    whole = run(tmp_path / "whole", *options, "--steps", "40")
    halves = run(tmp_path / "halves", *options, "--steps", "27")
    assert "coming_index_1" in Checkpoint(halves).state()
    run(halves, *options, "--steps", "40")
    same_checkpoint(whole, halves)


def test_seeds_side_by_side_are_the_runs_alone(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", "--seed", "1", "--steps", "15", "--batch", "16")
    run(tmp_path / "both", "--seed", "0", "--seeds", "2", "--steps", "15", "--batch", "16")
    same_checkpoint(alone, tmp_path / "both" / "seed-1")


def test_a_step_touches_the_rows_that_it_uses_and_no_others(tmp_path: Path) -> None:
    trainer = sampled(tmp_path / "run", batch=2, catalogue_head=10)
    before = {name: table.detach().clone() for name, table in trainer.policy.learned().items()}
    trainer.advance()
    for name, table in trainer.policy.learned().items():
        assert table.grad is not None
        rows = table.grad.coalesce().indices()[0]
        moved = (table != before[name]).any(dim=1)
        assert moved[rows].all()
        assert moved.sum() == len(rows)
        assert len(rows) <= (2 if "context" in name else 2 * (10 + 10) + 60)


def test_lazy_adam_by_hand() -> None:
    """Row 0 has gradients 2 and 1 at steps 1 and 3, so v = .999^2 .004 + .001 at step 3; row 1 one at step 2."""
    table = torch.nn.Parameter(torch.zeros(3, 1))
    optimizer = LazyAdam([table], lr=0.1)
    for row, gradient in ((0, 2.0), (1, 3.0), (0, 1.0)):
        table.grad = torch.sparse_coo_tensor([[row]], [[gradient]], (3, 1), check_invariants=True)
        optimizer.step()
    v = 0.999**2 * 0.001 * 2**2 + 0.001
    first = -0.1 * (1 + 1 / (v / (1 - 0.999**3)) ** 0.5)
    second = -0.1 * 3 / (0.001 * 3**2 / (1 - 0.999**2)) ** 0.5
    assert table[:, 0].tolist() == pytest.approx([first, second, 0], rel=1e-5)


def test_lazy_adagrad_is_adagrad() -> None:
    tables = [torch.nn.Parameter(torch.zeros(3, 2)) for _ in range(2)]
    optimizers = LazyAdagrad([tables[0]], lr=0.1), torch.optim.Adagrad([tables[1]], lr=0.1)
    for row in (0, 1, 0):
        tables[1].grad = torch.zeros(3, 2)
        tables[1].grad[row] = torch.tensor([1.0 + row, -0.3])
        tables[0].grad = torch.sparse_coo_tensor([[row]], tables[1].grad[row : row + 1], (3, 2), check_invariants=True)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(*tables)


def test_rows_with_features_and_their_gradient() -> None:
    bags = np.array([[0, 2], [1, -1], [-1, -1], [2, 1]])
    features = id_features(("a", "b", "c", "d"))
    tower = Tower(
        Features({**features.vocabularies, "kind": Categories(("x", "y", "z"))}, {**features.bags, "kind": bags}),
        num_experts=2,
        dimension=3,
    )
    rows, weight = torch.tensor([3, 0, 2]), torch.arange(18.0).view(3, 2, 3)
    torch.testing.assert_close(rows_of(tower, rows), tower(rows))
    sparse = torch.autograd.grad((rows_of(tower, rows) * weight).sum(), list(tower.weights().values()))
    dense = torch.autograd.grad((tower(rows) * weight).sum(), list(tower.weights().values()))
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one.to_dense(), other)


@pytest.mark.parametrize("num_experts", [1, 3])
def test_the_best_of_all_are_the_greedy_candidates(num_experts: int, tmp_path: Path) -> None:
    trainer = sampled(tmp_path / "run", experts=num_experts, init_std=1.0)
    contexts = torch.arange(50)
    expected = greedy_candidates(trainer.policy(contexts), 10)
    assert torch.equal(best_of_all(trainer.policy, contexts, trainer.system), expected)


def test_auto_samples_large_catalogues() -> None:
    auto = TrainConfig()
    assert not auto.samples(50_000)
    assert auto.samples(50_001)
    assert TrainConfig(catalogue="sampled").samples(200)
    assert not TrainConfig(catalogue="full").samples(10**6)
    assert "ca-heads" in (misuse_of_sample(TrainConfig(estimator="ca-heads"), 60_000) or "")
    assert misuse_of_sample(TrainConfig(estimator="ca-heads"), 40_000) is None


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--estimator", "ca-heads"], "catalogue (sampled): estimator (ca-heads) follows whole items"),
        (["--catalogue-head", "9"], "catalogue (sampled): catalogue_head (9) is below 10"),
        (["--candidates", "600", "--catalogue-head", "600"], "catalogue (sampled): candidates (600) are all the items"),
        (["--estimator", "infonce"], "catalogue (sampled) is for rounds that are played"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    options: list[str], rule: str, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    assert rule in refused(command_line([*SAMPLED, *options, "--out", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()


def test_a_small_catalogue_is_trained_whole(tmp_path: Path) -> None:
    trainer, _ = prepare(TrainConfig(environment="synthetic", items=200, contexts=20), tmp_path / "run")
    assert type(trainer) is Trainer
    assert isinstance(trainer.policy, EarlyStageRanker)


@pytest.mark.slow
def test_a_sample_teaches_what_the_full_catalogue_does(tmp_path: Path) -> None:
    """A tail of one item in ten, 400 steps: within 2 % of the full catalogue's policy value, mean of two seeds."""
    shape = {"environment": "synthetic", "items": 3000, "contexts": 300, "candidates": 20, "experts": 1}
    values = {}
    for catalogue in ("full", "sampled"):
        settings = {**shape, "catalogue": catalogue, "catalogue_tail": 300, "catalogue_head": 64, "index_every": 50}
        of_seeds = []
        for seed in (0, 1):
            learner, _ = prepare(
                TrainConfig.model_validate({**settings, "seed": seed}), tmp_path / f"{catalogue}{seed}"
            )
            for _ in range(400):
                learner.advance()
            of_seeds.append(learner.value()["policy_value"])
        values[catalogue] = np.mean(of_seeds)
    assert abs(values["sampled"] / values["full"] - 1) < 0.02
