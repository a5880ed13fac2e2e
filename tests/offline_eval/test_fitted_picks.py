"""Logs of an LSR that picks: its choices are fitted, and a candidate's value is found behind it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from esr_trainer.command_line import UsageError, main
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy import sample_candidates
from offline_eval.__main__ import OfflineEval
from offline_eval.logs import fitted_picks, log_evaluation
from offline_eval.logs.fitted_picks import LAPSE, OF_BOTH_STAGES, FittedLsr, PickedSlots, fit_lsr
from offline_eval.logs.log_evaluation import LogQuestion, evaluate_log
from offline_eval.logs.log_options import LogOptions
from offline_eval.logs.logged_rounds import LoggedRounds
from offline_eval.logs.lsr_choices import Fit, LsrChoices
from offline_eval.logs.target_policies import TargetPolicy, Weigher, ids_of, open_policy
from tests.conftest import last_json
from tests.offline_eval.conftest import WORLD
from tests.offline_eval.served_logs import served, write

T = LogOptions(interval="t")


@pytest.fixture(scope="module")
def picked_log(served_runs: Path) -> str:
    """1,500 rounds that the bundle drew and a noisy LSR showed."""
    return write(served_runs / "picked.db", served(served_runs / "bundles", WORLD, 1500, lsr="noisy"))


def picked_value(path: Path) -> float:
    """Expected reward of the two of five drawn candidates that a noisy LSR shows, over 400 draws per context."""
    contexts, generator = torch.arange(60).repeat(400), torch.Generator().manual_seed(0)
    drawn = sample_candidates(torch.from_numpy(open_policy(path).logits(contexts.numpy())), 5, generator)
    positions = LATE_STAGE_RANKERS["noisy"].rank(WORLD.scores(contexts, drawn), 2, generator)
    return 2 * float(WORLD.expected_rewards(contexts, drawn.gather(1, positions)).mean())


def test_the_value_is_found_behind_an_lsr_that_picks(served_runs: Path, picked_log: str) -> None:
    found = evaluate_log(LogQuestion(picked_log, options=T), [served_runs / "better"], served_runs / "logged")
    (judged,) = found.judged
    by_name = {one.estimator: one for one in judged.estimated}
    assert judged.estimated[0].estimator == "sn-iips"
    value, truth = by_name["sn-iips"].value, picked_value(served_runs / "better")
    assert value.low < truth < value.high
    assert abs(value.mean - truth) < abs(by_name["sn-inclusion"].value.mean - truth) / 2
    assert by_name["sn-iips"].overlap is not None
    assert by_name["sn-iips"].overlap.weight == "log_marginal_ratios"
    assert judged.verdict.decision == "promote"
    assert found.lsr is not None
    assert found.lsr.model < found.lsr.uniform - 0.1


def test_an_lsr_that_tells_its_probabilities_is_known_better(served_runs: Path, picked_log: str) -> None:
    told = write(served_runs / "told.db", served(served_runs / "bundles", WORLD, 1500, lsr="noisy", is_told=True))
    only = LogOptions(interval="t", estimators=("sn-iips",))
    found = [evaluate_log(LogQuestion(log, options=only), [served_runs / "better"], served_runs / "logged")
             for log in (picked_log, told)]  # fmt: skip
    guessed, known = (one.lsr for one in found)
    assert guessed is not None
    assert known is not None
    assert known.model < guessed.model - 0.02
    value = found[1].judged[0].estimated[0].value
    assert value.low < picked_value(served_runs / "better") < value.high


def test_the_policy_that_logged_is_itself(served_runs: Path, picked_log: str) -> None:
    (judged,) = evaluate_log(
        LogQuestion(picked_log, options=T), [served_runs / "logged"], served_runs / "bundles"
    ).judged
    for estimated in judged.estimated:
        assert estimated.difference == pytest.approx((0, 0, 0), abs=1e-5)


def test_without_the_policy_that_logged_the_lsr_is_left_alone(
    served_runs: Path, picked_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    better, logged = served_runs / "better", served_runs / "logged"
    for baseline in (None, better):
        found = evaluate_log(LogQuestion(picked_log, options=T), [logged], baseline)
        assert found.lsr is None
        assert not set(OF_BOTH_STAGES) & {one.estimator for one in found.judged[0].estimated}
    asked = LogQuestion(picked_log, options=LogOptions(estimators=("iips",)))
    with pytest.raises(UsageError, match="name it with --baseline"):
        evaluate_log(asked, [logged])
    with pytest.raises(UsageError, match="better did not draw all of its rounds"):
        evaluate_log(asked, [logged], better)
    monkeypatch.setattr(log_evaluation, "PICKABLE", 60 * 40 - 1)
    assert evaluate_log(LogQuestion(picked_log, options=T), [better], logged).lsr is None
    monkeypatch.undo()
    monkeypatch.setattr(log_evaluation, "KEPT", 1)
    assert evaluate_log(LogQuestion(picked_log, options=T), [better], logged).lsr is None


def test_where_no_estimator_is_named_a_log_that_cannot_tell_the_lsr_is_judged_without(served_runs: Path) -> None:
    """Some of its last rounds are drawn by nobody known, or it is short."""
    records = served(served_runs / "bundles", WORLD, 40, lsr="noisy")
    strange = records[-1]._replace(shown=records[-1].shown._replace(log_probability=-50.0))
    logs = (
        write(served_runs / "mixed.db", [*records[:-1], strange]),
        write(served_runs / "nine.db", records[:9]),
    )
    for log, reason in zip(logs, ("did not draw all", "has 9 rounds"), strict=True):
        found = evaluate_log(LogQuestion(log, options=T), [served_runs / "better"], served_runs / "logged")
        assert found.judged[0].estimated[0].estimator == "sn-inclusion"
        with pytest.raises(UsageError, match=reason):
            evaluate_log(
                LogQuestion(log, options=LogOptions(estimators=("iips",))),
                [served_runs / "better"],
                served_runs / "logged",
            )


def test_the_command_says_how_well_the_lsr_is_known(
    served_runs: Path, picked_log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(served_runs / "better"), "--baseline", str(served_runs / "logged")]
    assert main(OfflineEval, "", ["compare", *runs, "--log", picked_log, "--json"]) == 0
    out = capsys.readouterr().out
    assert "the log's LSR as fitted" in out.replace("\n", " ")
    assert last_json(out)["lsr"]["model"] < last_json(out)["lsr"]["uniform"]


def test_a_large_log_is_fitted_to_by_evenly_spread_rounds(
    served_runs: Path, picked_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    whole = fitted_picks.fit_choices
    monkeypatch.setattr(
        fitted_picks, "fit_choices", lambda choices, *n: (fitted.append(len(choices.contexts)), whole(choices, *n))[1]
    )
    monkeypatch.setattr(fitted_picks, "LARGEST_LOG", 400)
    fit_lsr(picked_log, "refuse", Weigher(open_policy(served_runs / "logged")), 1500)
    assert fitted == [375]
    monkeypatch.setattr(fitted_picks, "LARGEST_LOG", 1)
    with pytest.raises(UsageError, match="has 1 rounds"):
        fit_lsr(picked_log, "refuse", Weigher(open_policy(served_runs / "logged")), 1500)


CONTEXTS, ITEMS = ("x", "y"), tuple("abcdefgh")
LOGITS = np.random.default_rng(0).normal(size=(2, 1, 8))
POLICY = TargetPolicy("by hand", CONTEXTS, ITEMS, 1, lambda rows: LOGITS[rows])


def lsr() -> FittedLsr:
    model = LsrChoices(2, 8)
    torch.nn.init.normal_(model.bias, 0, 2, generator=torch.Generator().manual_seed(0))
    return FittedLsr(model, Fit(0, 0), *ids_of(POLICY), 3, 2)


def page(slates: list[list[str | None]], candidates: list[list[str | None]]) -> LoggedRounds:
    slate, among = (pl.Series(rows).explode().cast(pl.String) for rows in (slates, candidates))
    contexts = pl.Series([CONTEXTS[row % 2] for row in range(len(slates))])
    return LoggedRounds(contexts, slate, np.zeros((len(slates), len(slates[0]))), candidates=among)


def test_slots_sum_to_one_and_what_the_lsr_never_does_has_its_lapse() -> None:
    rounds = page([[item, None] for item in ITEMS for _ in CONTEXTS], [["a", "b", "c"]] * 16)
    chance = np.exp(PickedSlots(Weigher(POLICY), lsr()).log_chance(rounds))
    assert (chance[:, 1] == 1).all(), "an empty slot"
    assert chance[0::2, 0].sum() == pytest.approx(1, abs=0.02)
    sharp = lsr()
    with torch.no_grad():
        sharp.model.bias.copy_(torch.tensor([-20.0, *[0.0] * 7]))
    (last,) = np.exp(PickedSlots(Weigher(POLICY), sharp).log_chance(page([["a"]], [["a", "b", "c"]])))
    inclusion = np.exp(fitted_picks.log_drawn_inclusion(torch.from_numpy(LOGITS), 3).numpy())[0, 0]
    assert last == pytest.approx(LAPSE * inclusion / 3, rel=1e-3)


def test_rounds_of_fewer_candidates_and_unknown_items(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = PickedSlots(Weigher(POLICY), lsr())
    mixed = page(
        [["a", "b"], ["c", "strange"], ["a", None]], [["a", "b", "c"], ["c", "strange", "e"], ["a", None, None]]
    )
    found = slots.log_chance(mixed)
    assert found[1, 1] == -np.inf
    alone = slots.log_chance(page([["a"]], [["a"]]))
    assert found[2] == pytest.approx([alone[0, 0], 0])
    assert alone[0, 0] == pytest.approx(LOGITS[0, 0, 0] - np.log(np.exp(LOGITS[0, 0]).sum()), abs=1e-6), "the softmax"
    monkeypatch.setattr(fitted_picks, "KEPT", 1)
    monkeypatch.setattr(fitted_picks, "CELLS", 1)
    assert PickedSlots(Weigher(POLICY), lsr()).log_chance(mixed) == pytest.approx(found)
