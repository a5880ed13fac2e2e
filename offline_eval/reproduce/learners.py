"""LEARNERS: what a cell of an experiment trains."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from esr_trainer.config import TrainConfig
from offline_eval.reproduce import held_out, proxies
from offline_eval.reproduce.curves import Curve
from offline_eval.reproduce.halfway import learn_resumably

Learner = Callable[[TrainConfig, Path], Curve]
"""Settings, and a folder of the run's own that it may go on from -> curve."""


def from_the_start(learn: Callable[[TrainConfig], Curve], config: TrainConfig, folder: Path) -> Curve:
    """A learner that keeps nothing on its way: its runs are short."""
    return learn(config)


LEARNERS: Mapping[str, Learner] = {
    "policy-gradient": learn_resumably,
    **{name: partial(from_the_start, learn) for name, learn in {**proxies.LEARNERS, **held_out.LEARNERS}.items()},
}
"""Name -> learner."""

ON_ANY_DEVICE = ("policy-gradient",)
"""Learners that can compute elsewhere than on the cpu."""
