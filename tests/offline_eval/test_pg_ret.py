"""PG-Ret's table: its measures by hand, and the whole command on a small world of KuaiRec's form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from offline_eval.procedures.pg_ret import MEASURES, Judged, Question, differences, measure
from offline_eval.procedures.pg_ret_runs import (
    BASE,
    BEST,
    BUDGETS,
    CONTEXTS_GONE_ON,
    GOALS,
    GONE_ON,
    ORACLE,
    SUPERVISED,
    Budget,
    Experiment,
    Learned,
    advanced,
    contexts_alone,
    scores_of,
)
from tests.conftest import last_json

USERS, ITEMS = 60, 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of two tastes; the watch ratio is 3 where the real label is 1, and 1.7 in some other cells."""
    root = tmp_path_factory.mktemp("shared")
    labels = np.zeros((USERS, ITEMS), np.uint8)
    labels[:30, :20], labels[30:, 20:40] = 1, 1
    wrong = np.random.default_rng(0).random(labels.shape) < 0.1
    ids = {"user_id": np.arange(USERS), "video_id": np.arange(ITEMS)}
    data = root / "data" / "kuairec"
    data.mkdir(parents=True)
    np.savez(data / "small_matrix_gt2.npz", gt2_bits=np.packbits(labels, axis=1), **ids)
    ratio = np.where(labels, 3000, np.where(wrong, 1700, 500)).astype(np.uint16)
    bits = np.packbits(np.ones_like(labels), axis=1)
    np.savez(data / "small_matrix_semisynthetic.npz", watch_ratio_milli=ratio, observed_bits=bits, **ids)
    return root


@pytest.fixture(scope="module")
def question(folder: Path) -> Question:
    """Of that folder, all but five users reported."""
    data = folder / "data" / "kuairec" / "small_matrix_semisynthetic.npz"
    labels = np.unpackbits(np.load(folder / "data" / "kuairec" / "small_matrix_gt2.npz")["gt2_bits"], axis=1)
    return Question.of(data, torch.from_numpy(labels[:, :ITEMS]).float())


@pytest.fixture(scope="module")
def experiment(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(question, Budget((1,), 100, 300, 50, 40), 1, tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def learned(experiment: Experiment) -> tuple[Learned, Learned]:
    """Base and supervised."""
    base, supervised = experiment.supervised()
    return base, supervised


def test_measures_by_hand(question: Question) -> None:
    """Two users of two and four positives; one and three of their tops are relevant, four of ten items are new.

    Hidden are 0 to 12 and 15 of the first user, whose best ten, 0 to 9, hold one of two positives; and all but 0 and 19
    of the second, whose best ten, 10 to 1, hold the three positives that are hidden.
    """
    labels = torch.zeros(3, 20)
    labels[0, [0, 15]] = 1
    labels[1, [9, 1, 2, 19]] = 1
    scores = torch.full((3, 20), -1.0)
    scores[0, :10] = torch.arange(10, 0, -1.0)
    scores[1, :10] = torch.arange(10.0)
    scores[1, 10] = -0.5
    base = scores.clone()
    base[0, 6:10] = base[1, :4] = -2.0
    base[:, 16:] = 0.5
    hidden = torch.zeros(3, 20, dtype=torch.bool)
    scores[0, 10:13] = -0.5
    hidden[0, [*range(13), 15]] = True
    hidden[1, 1:19] = True
    found = measure(question._replace(hidden=hidden), labels, scores, base, torch.tensor([0, 1]))
    expected = {
        "recall@1": (1 / 2 + 1 / 4) / 2,
        "recall@10": (1 / 2 + 3 / 4) / 2,
        "novelty@10": 0.4,
        "precision@1": 1.0,
        "precision@5": (1 / 5 + 1 / 5) / 2,
        "hidden recall@10": (1 / 2 + 3 / 3) / 2,
    }
    assert found == pytest.approx(expected)


def test_the_command_judges_every_policy_and_keeps_its_seeds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["pg-ret", "--budget", "smoke", "--shared", str(folder), "--results", str(tmp_path), "--json"]
    assert main(OfflineEval, "python -m offline_eval", options) == 0
    out, err = capsys.readouterr()
    assert err.split() == ["seed", "1", "seed", "2"]
    result = last_json(out)
    policies = result["policies"]
    goals = [f"pg-ret, {goal}" for goal in GOALS]
    assert list(policies) == [BASE, SUPERVISED, GONE_ON, CONTEXTS_GONE_ON, *goals, ORACLE, BEST]
    assert all(set(of) == {"steps", *MEASURES} for of in policies.values())
    assert policies[BASE]["novelty@10"]["mean"] == 0
    assert policies[SUPERVISED]["recall@1"]["above supervised"]["mean"] == 0
    assert policies[BEST]["precision@5"]["mean"] == 1
    assert 0.6 < policies[ORACLE]["precision@5"]["mean"] < 0.9, "it takes a tenth of 60 for relevant"
    assert policies[GONE_ON]["steps"] == [BUDGETS["smoke"].adapting_steps] * 2
    assert main(OfflineEval, "python -m offline_eval", options) == 0
    out, err = capsys.readouterr()
    assert not err, "nothing was run again"
    assert last_json(out) == result


def test_who_validates_is_not_reported(question: Question) -> None:
    both = torch.cat([question.validating, question.reported])
    assert both.sort().values.tolist() == list(range(USERS))
    assert len(question.validating) == round(0.3 * USERS)


def test_nobody_learns_of_a_hidden_pair(experiment: Experiment) -> None:
    question = experiment.question
    assert question.hidden.float().mean() == pytest.approx(0.2, abs=0.03)
    learned = experiment.supervision().parts.learned
    assert not question.hidden[learned.contexts, learned.items].any()
    everything = torch.arange(USERS), torch.arange(ITEMS).expand(USERS, -1)
    relevance = question.relevance(*everything)
    assert torch.equal(relevance.isnan(), question.hidden)
    assert torch.equal(relevance[~question.hidden], question.oracle[~question.hidden])


def test_the_supervised_run_is_at_its_best_look(experiment: Experiment, learned: tuple[Learned, Learned]) -> None:
    base, supervised = learned
    learner = advanced(experiment.supervision().begin(), base.steps)
    recalls = {}
    while learner.step < experiment.budget.supervised_steps:
        scores = scores_of(advanced(learner, learner.step + experiment.budget.look))
        recalls[learner.step] = experiment.validated(scores, base.scores)["recall@10"]
    assert supervised.steps == max(recalls, key=lambda step: recalls[step])
    assert experiment.validated(supervised.scores, base.scores)["recall@10"] == max(recalls.values())


def test_going_on_begins_where_pg_ret_begins(experiment: Experiment, learned: tuple[Learned, Learned]) -> None:
    _, supervised = learned
    adapting = experiment.adapting("recall", supervised)
    assert torch.equal(scores_of(adapting), supervised.scores)
    learner = contexts_alone(experiment.supervision().begin())
    assert {name.partition(".")[0] for name in learner.policy.learned()} == {"context_tower"}
    no_step = Experiment(experiment.question, experiment.budget._replace(adapting_steps=0), 1, experiment.folder)
    assert torch.equal(no_step.gone_on(supervised, contexts_alone), supervised.scores)
    assert not torch.equal(experiment.gone_on(supervised, contexts_alone), supervised.scores)


def test_novelty_is_taken_where_the_precision_is_kept(
    experiment: Experiment, learned: tuple[Learned, Learned], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, supervised = learned
    looks = []
    for kept in (0.0, 2.0):
        monkeypatch.setattr("offline_eval.procedures.pg_ret_runs.PRECISION_KEPT", kept)
        monkeypatch.setattr("offline_eval.procedures.pg_ret_runs.NOVELTY_LOOK", 20)
        looks.append(experiment.for_novelty(supervised, base.scores))
    free, bound = looks
    assert bound.steps == 0, "no precision is twice the start's"
    assert torch.equal(bound.scores, supervised.scores)
    assert free.steps in (20, 40)
    novelty = [experiment.validated(one.scores, base.scores)["novelty@10"] for one in (bound, free)]
    assert novelty[1] > novelty[0]


def test_differences_are_paired() -> None:
    """Two seeds, 0.1 and 0.3 above: 0.2, with a standard error of 0.1."""

    def run(seed: int, value: float) -> Judged:
        return Judged(policy="", seed=seed, steps=0, measures=dict.fromkeys(MEASURES, value), by_oracle={})

    found = differences([run(1, 0.6), run(2, 0.5)], [run(1, 0.5), run(2, 0.2)])
    assert found["recall@10"] == pytest.approx((0.2, 0.1))
