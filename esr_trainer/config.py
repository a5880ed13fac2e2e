"""The settings that decide a run; each is named once, here, and is a command-line option and a key of a YAML file."""

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from esr_trainer.command_line import Options

EstimatorName = Literal["top1", "ca", "ca-swr", "ca-poisson", "v-swr", "v"]
EnvironmentName = Literal["kuairec", "synthetic"]
LateStageRankerName = Literal["optimal", "noisy", "uniform", "anti"]
SlotWeightsName = Literal["sum", "mean", "dcg"]


class TrainConfig(Options):
    """What decides the result of a training run."""

    estimator: EstimatorName = "top1"
    """Log-probability that the reward's gradient follows: the shown item's chance to be a candidate (`top1`, `ca-swr`:
    as if drawn with replacement; `ca`: without), or the drawn candidates' (`v-swr`, and exact `v`)."""
    environment: EnvironmentName | None = None
    """World to learn in; default the --data file's, or kuairec."""
    data: Path | None = None
    """KuaiRec's small_matrix.csv, small_matrix_gt2.npz or small_matrix_semisynthetic.npz, or the arrays of a synthetic
    world (npz); without it a simulator stands in."""
    world_seed: NonNegativeInt = 0
    """Seed of a generated world; ignored with --data."""
    lsr: LateStageRankerName = "optimal"
    """Late-stage ranker: by reward, by reward with Plackett-Luce noise, at random, or worst first."""
    slot_weights: SlotWeightsName = "sum"
    """How much slot l counts: 1, 1/L, or 1/log2(l+1)."""
    candidates: PositiveInt = 100
    """K: items that the early-stage ranker hands to the late-stage ranker."""
    slate: PositiveInt = 1
    """L: items that the late-stage ranker shows."""
    experts: PositiveInt = 4
    """M: tower pairs; the candidates are shared out among them."""
    context_features: Path | None = None
    """CSV of context features (first column the id), such as KuaiRec's user_features.csv; default ids alone."""
    item_features: Path | None = None
    """CSV of item features (first column the id), such as KuaiRec's item_categories.csv; default ids alone."""
    embedding_dim: PositiveInt = 10
    """Dimension of an expert's embeddings."""
    init_std: PositiveFloat = 0.1
    """Standard deviation of the embedding tables at the start."""
    temperature: PositiveFloat = 1.0
    """Logits are inner products divided by this."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """Optimizer of the towers."""
    learning_rate: PositiveFloat = 0.01
    """Learning rate of the optimizer."""
    batch: PositiveInt = 128
    """Contexts per step, drawn uniformly with replacement."""
    steps: PositiveInt = 2000
    """Gradient steps in all; a run that is taken up again may ask for more."""
    seed: NonNegativeInt = 0
    """Seed of the initial tables and of every draw."""
    evaluate_every: PositiveInt = 100
    """Steps between two evaluations on all contexts."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints; the last and the best are kept."""

    @model_validator(mode="after")
    def _slate_fits(self) -> "TrainConfig":
        if self.slate > self.candidates:
            raise ValueError(f"slate ({self.slate}) exceeds candidates ({self.candidates})")
        return self
