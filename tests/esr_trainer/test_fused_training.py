"""Steps that store no logits of the whole catalogue, against those that do."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from esr_trainer.config import FUSED, FUSED_CATALOGUE, LARGE_CATALOGUE, ONLINE, TrainConfig
from esr_trainer.features import id_features
from esr_trainer.fused_training import FusedTrainer
from esr_trainer.learner import descend, take_step
from esr_trainer.preparation import InWorld, prepare
from esr_trainer.sampled_training import SampledTrainer
from esr_trainer.synthetic import synthetic_world
from esr_trainer.system import system_of
from esr_trainer.towers import logits_side_by_side
from esr_trainer.training import Played, Trainer, greedy_values, losses_of, new_trainer, place_of

HAS_TRITON = find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="the kernels need triton: install the extra [gpu]")


def new(kind: type[Trainer], device: str, num_items: int = 70, **given: object) -> Trainer:
    """A run at its first step."""
    shape = {"candidates": 5, "slate": 2, "experts": 2, "embedding_dim": 3, "batch": 16, "init_std": 1.0}
    config = TrainConfig.model_validate({**shape, "environment": "synthetic", "device": device, **given})
    world = synthetic_world(20, num_items).to(device)
    ids = id_features(world.context_ids), id_features(world.item_ids)
    return new_trainer(config, world, system_of(config, world), *ids, kind)


def tables(trainer: Trainer) -> list[torch.Tensor]:
    return [table.detach().clone() for table in trainer.policy.parameters()]


@needs_triton
@pytest.mark.parametrize(
    "given",
    [
        {"estimator": "ca-poisson", "experts": 2, "lsr": "noisy", "variance_reduction": "control-variate"},
        {"estimator": "top1", "experts": 1},
    ],
    ids=lambda given: given["estimator"],
)
def test_steps_with_the_same_rounds_give_the_same_tables(given: dict[str, Any], kernel_device: str) -> None:
    fused, stored = (new(kind, kernel_device, evaluate_every=1, **given) for kind in (FusedTrainer, Trainer))
    before = tables(stored)
    for _ in range(2):
        played = type(fused).play([fused])
        logits = logits_side_by_side([stored.policy], [played.contexts])
        again = Played(played.contexts, logits, played.round_, place_of(played.round_))
        for trainer, own in ((fused, played), (stored, again)):
            descend([trainer], trainer.optimizer, losses_of([trainer], own), own.logits)
    for found, expected, old in zip(tables(fused), tables(stored), before, strict=True):
        assert float((expected - old).abs().max()) > 0.01
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert fused.metrics == pytest.approx(stored.metrics, rel=1e-5)


class Largest(TorchDispatchMode):
    """The most bytes that any tensor had."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.nbytes)
        return made


@needs_triton
def test_nothing_of_the_size_of_the_logits_is_made(kernel_device: str) -> None:
    sizes = {}
    for kind in (FusedTrainer, Trainer):
        trainer = new(kind, kernel_device, num_items=700, batch=64, estimator="ca-poisson", experts=1)
        with Largest() as largest:
            trainer.advance()
            assert trainer.step == 1
        sizes[kind] = largest.size
    assert sizes[FusedTrainer] < 64 * 700 * 4 / 2
    assert sizes[Trainer] >= 64 * 700 * 4


@needs_triton
def test_runs_side_by_side_take_the_steps_that_they_would_take_alone(kernel_device: str) -> None:
    alone, together = ([new(FusedTrainer, kernel_device, seed=seed) for seed in (0, 1)] for _ in range(2))
    for trainer in alone:
        trainer.advance()
    parameters = [table for trainer in together for table in trainer.policy.parameters()]
    take_step(together, torch.optim.Adam(parameters, lr=together[0].config.learning_rate))
    for one, other in zip(alone, together, strict=True):
        for found, expected in zip(tables(other), tables(one), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@needs_triton
def test_the_policy_value_is_that_of_stored_logits(kernel_device: str) -> None:
    trainer = new(FusedTrainer, kernel_device)
    expected = greedy_values(trainer.world, trainer.system, trainer.policy).mean()
    assert trainer.value()["policy_value"] == pytest.approx(float(expected), abs=1e-6)


def test_the_fused_path_is_taken_for_a_large_catalogue_on_cuda() -> None:
    def kind_of(num_items: int, **given: object) -> type[Trainer]:
        config = TrainConfig.model_validate({"environment": "synthetic", **given})
        world = synthetic_world(2, num_items)
        return InWorld(config, None, world).kind

    assert kind_of(FUSED_CATALOGUE, device="cuda") is (FusedTrainer if HAS_TRITON else Trainer)
    assert kind_of(FUSED_CATALOGUE - 1, device="cuda") is Trainer
    assert kind_of(FUSED_CATALOGUE) is Trainer
    assert kind_of(LARGE_CATALOGUE + 1) is SampledTrainer
    for estimator in ONLINE:
        is_fused = TrainConfig(estimator=estimator, device="cuda").fuses(FUSED_CATALOGUE)
        assert is_fused == (HAS_TRITON and estimator in FUSED)


@pytest.mark.slow
def test_the_trainer_is_there_without_triton() -> None:
    hidden = "import sys; sys.modules['triton'] = None; import esr_trainer.__main__, esr_trainer.preparation"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_on_a_gpu_goes_the_fused_way_and_learns(kernel_device: str, tmp_path: Path) -> None:
    if kernel_device == "cpu":
        pytest.skip("this machine has no GPU")
    given = {"environment": "synthetic", "items": FUSED_CATALOGUE, "device": "cuda", "steps": 100, "experts": 2}
    trainer, _ = prepare(TrainConfig.model_validate({**given, "estimator": "ca-poisson"}), tmp_path / "run")
    assert type(trainer) is FusedTrainer
    for _ in range(100):
        trainer.advance()
    trainer.evaluate()
    assert trainer.metrics["policy_value"] > trainer.metrics["initial_policy_value"] + 0.5
