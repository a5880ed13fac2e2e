"""BUDGETS: how much an experiment spends, and the data that it may read.

Data: the published synthetic world and the semi-synthetic KuaiRec matrix, where a folder that holds them is named;
generated worlds stand in otherwise.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esr_trainer.config import DeviceName, TrainConfig
from offline_eval.reproduce.cells import Cell

SYNTHETIC = Path("golden/synthetic_env.npz")
KUAIREC = Path("data/kuairec/small_matrix_semisynthetic.npz")
USER_FEATURES = Path("data/kuairec/user_features.csv")
ITEM_CATEGORIES = Path("data/kuairec/item_categories.csv")
ITEM_TEXTS = Path("data/kuairec/kuairec_caption_category.csv")
LABELS = Path("data/kuairec/small_matrix_gt2.npz")


class Budget(NamedTuple):
    """How much is spent."""

    seeds: int
    paper_steps: int
    """Gradient steps of the paper's preset."""
    steps: int
    """Gradient steps of the default preset."""


BUDGETS: Mapping[str, Budget] = {
    "smoke": Budget(2, 30, 20),
    "short": Budget(3, 50_000, 5_000),
    "paper": Budget(10, 500_000, 50_000),
}


class Plan(NamedTuple):
    """What an experiment may read."""

    budget: Budget
    shared: Path | None
    """Folder of the data, or None for generated worlds."""
    results: Path
    """Folder of the results, where an experiment may look up another's."""
    device: DeviceName = "cpu"
    """Where the runs compute."""

    def config(self, data: Path = SYNTHETIC, **settings: Any) -> TrainConfig:
        """Settings on a world's file, or on the generated world of that name."""
        world = {"environment": "kuairec" if data == KUAIREC else "synthetic"}
        base = {**world, "candidates": 10, "experts": 1, "device": self.device}
        base["steps"] = self.budget.steps
        chosen = {**base, **({"data": self.shared / data} if self.shared else {}), **settings}
        evaluations = {"evaluate_every": max(10, chosen["steps"] // 100), "checkpoint_every": chosen["steps"]}
        return TrainConfig.model_validate({**evaluations, **chosen})

    def cells(self, *configs: TrainConfig, learner: str = "policy-gradient") -> list[Cell]:
        """Every configuration with every seed."""
        return [
            Cell(learner=learner, config=config.model_copy(update={"seed": seed}))
            for config, seed in itertools.product(configs, range(self.budget.seeds))
        ]
