"""The LSR-propensity learning-rate scale (arXiv:2605.26385 App. E, Eq. 9)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.config import EstimatorName, LateStageRankerName, TrainConfig, paper_learning_rate
from esr_trainer.environments import open_world
from esr_trainer.learning_rate import greedy_propensity, learning_rate
from esr_trainer.preparation import prepare
from esr_trainer.system import system_of
from esr_trainer.world import World


@pytest.mark.parametrize(
    ("lsr", "propensity", "tolerance"),
    [("noisy", 0.64, 0.01), ("uniform", 0.1, 1e-6), ("optimal", 1.0, 1e-6), ("anti", 1.0, 1e-6)],
)
def test_the_published_scales_come_out_on_the_published_world(
    lsr: LateStageRankerName, propensity: float, tolerance: float, shared: Path
) -> None:
    world = open_world("synthetic", shared / "golden" / "synthetic_env.npz", 0)
    config = TrainConfig(candidates=10, lsr=lsr, learning_rate_scale="propensity", learning_rate=1e-2)
    found = greedy_propensity(world, system_of(config, world), torch.Generator().manual_seed(1))
    assert found == pytest.approx(propensity, abs=tolerance)
    rate = learning_rate(config, world, system_of(config, world))
    assert rate == pytest.approx(1e-2 / propensity, rel=0.02)
    assert round(rate, 2) == paper_learning_rate("top1", lsr)


def test_propensity_of_the_top_candidate_by_hand() -> None:
    """Two items with scores 0 and log 3, both candidates: Plackett-Luce shows the second with 3 / (1 + 3)."""
    scores = torch.tensor([[1.0, 3.0]]).log()
    world = World("synthetic", "", ("x",), ("a", "b"), scores, torch.ones(1, 2), torch.zeros(1, 2), "")
    system = system_of(TrainConfig(candidates=2, lsr="noisy"), world)
    assert greedy_propensity(world, system, torch.Generator().manual_seed(0)) == pytest.approx(0.75)


def test_the_optimizer_takes_the_scaled_rate_and_keeps_it_when_resumed(tmp_path: Path) -> None:
    options = "--environment synthetic --candidates 10 --experts 1 --lsr uniform --learning-rate-scale propensity"
    assert command_line([*options.split(), "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    config = TrainConfig(
        environment="synthetic", candidates=10, experts=1, lsr="uniform", learning_rate_scale="propensity"
    )
    for trainer, step in ((prepare(config, tmp_path / "new")[0], 0), (prepare(config, tmp_path / "run")[0], 1)):
        assert trainer.step == step
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_paper_preset_is_not_scaled_twice() -> None:
    given = {"preset": "paper", "lsr": "uniform", "learning_rate_scale": "propensity"}
    assert TrainConfig.model_validate(given).learning_rate == 1e-2
    assert TrainConfig.model_validate({**given, "learning_rate_scale": "none"}).learning_rate == 1e-1


@pytest.mark.parametrize("estimator", ["v", "v-swr"])
def test_the_v_family_is_refused_in_one_line(estimator: EstimatorName, refused: Callable[[int], str]) -> None:
    says = refused(
        command_line(["--estimator", estimator, "--learning-rate-scale", "propensity", "--data", "missing.npz"])
    )
    assert "learning_rate_scale (propensity)" in says
    assert estimator in says
