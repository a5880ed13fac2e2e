"""LEARNERS: what a cell of an experiment trains."""

from collections.abc import Callable, Mapping

from esr_trainer.config import TrainConfig
from offline_eval import held_out, proxies
from offline_eval.curves import Curve, learn, new_run, references_of


def policy_gradient(config: TrainConfig) -> Curve:
    """Train as `python -m esr_trainer` does."""
    trainer = new_run(config)
    return learn(trainer, trainer.advance, references_of(trainer))


LEARNERS: Mapping[str, Callable[[TrainConfig], Curve]] = {
    "policy-gradient": policy_gradient,
    **proxies.LEARNERS,
    **held_out.LEARNERS,
}
"""Name -> settings -> curve."""
