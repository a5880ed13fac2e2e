import math
from itertools import islice

import pytest
import torch

from esr_trainer.config import TrainConfig
from esr_trainer.interaction import Round
from esr_trainer.learner import descend
from esr_trainer.training import losses_of, play
from offline_eval.reproduce.curves import new_run
from offline_eval.reproduce.proxies import INTERACTIONS, LEARNERS, regression, sampled_softmax

SMALL = TrainConfig(
    environment="synthetic", contexts=40, items=60, candidates=5, experts=1, steps=300, evaluate_every=100, batch=64
)


def a_round(slate: list[int], reward: list[float]) -> Round:
    items = torch.tensor(slate)[:, None]
    return Round(items, items, torch.tensor(reward)[:, None], torch.zeros_like(items))


def test_regression_by_hand() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    loss = regression(logits, a_round([0, 1], [6.0, 2.0]), torch.Generator())
    assert loss[:, 0].tolist() == [(1 - 2) ** 2, (3 + 2) ** 2]  # rewards less their mean: 2 and -2


def test_sampled_softmax_of_equal_logits_is_log_n_for_positives_and_nothing_for_others() -> None:
    loss = sampled_softmax(torch.zeros(3, 1, 50), a_round([4, 5, 6], [1.0, 2.0, 3.0]), torch.Generator().manual_seed(0))
    assert loss[:, 0].tolist() == pytest.approx([0, 0, math.log(50)])


def test_a_proxy_may_follow_the_very_interactions_of_a_run() -> None:
    run = new_run(SMALL)
    following = INTERACTIONS["the run's"](new_run(SMALL), SMALL)
    for _ in range(3):
        played = play([run])
        descend([run], run.optimizer, losses_of([run], played), played.logits)
        contexts, found = following()
        assert torch.equal(contexts, played.contexts)
        assert all(torch.equal(*pair) for pair in zip(found, played.round_, strict=True))


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_proxy_learns_more_than_chance(learner: str) -> None:
    curve = LEARNERS[learner](SMALL)
    assert list(islice(curve.steps, 4)) == [0, 100, 200, 300]
    assert curve.failure is None
    chance, optimum = curve.references["uniform"], curve.references["optimal"]
    assert curve.policy_value[-1] > chance + 0.05 * (optimum - chance)
