"""PG-Ret: its gradient by hand, its rewards case by case, and a run from --init to a switched server's index."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import main
from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.logged_batches import positives_of
from esr_trainer.pg_ret import AdaptingTrainer, binary_loss, by_context, similarities, top_of
from esr_trainer.pg_ret_rewards import REWARDS, open_reward
from esr_trainer.preparation import settle
from offline_eval.__main__ import OfflineEval
from serving.export import export
from tests.conftest import last_json
from tests.esr_trainer.test_training import same_checkpoint

WORLD = ["--environment", "synthetic", "--contexts", "80", "--items", "60", "--candidates", "5"]
RELEVANT = ["--relevance.relevant-above", "5"]
TRUTH = open_world("synthetic", None, 0, contexts=80, items=60)
RELEVANT_PAIRS = (TRUTH.expected_reward > 5).nonzero().T.tolist()


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("supervised") / "run"
    options = ["--estimator", "infonce", "--experts", "1", "--steps", "40", "--learning-rate", "0.03"]
    assert command_line([*WORLD, *RELEVANT, *options, "--out", str(out)]) == 0
    return out


def adapt(out: Path, init: Path, *options: str) -> Path:
    given = ["--estimator", "pg-ret", "--init", str(init), "--candidates", "5", *RELEVANT, *options]
    assert command_line([*given, "--out", str(out)]) == 0
    return out


def policy_gradient_by_hand(similarities: Tensor, rewards: Tensor) -> Tensor:
    """d/df of -E[R], E[R] = sum_a ( pi(1 | a) R_b(a) - pi(0 | a) R_b(a) ): -2 pi (1 - pi) R_b, worked by hand."""
    chance = 1 / (1 + torch.exp(-similarities))
    return -2 * chance * (1 - chance) * rewards


def test_the_expected_gradient_over_all_actions_is_the_policy_gradient() -> None:
    """Three pairs, all 2^3 yes and no, each by its probability; the loss itself draws them."""
    similarities = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, -1.0, 0.4], dtype=torch.float64)
    chance = similarities.detach().sigmoid()
    seen: dict[tuple[bool, ...], Tensor] = {}
    for seed in range(300):  # until every combination was drawn once
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < chance
        loss = binary_loss(similarities, rewards, torch.Generator().manual_seed(seed)).sum()
        seen[tuple(drawn.tolist())] = torch.autograd.grad(loss, similarities)[0]
    assert set(seen) == set(product([False, True], repeat=3))
    expected = torch.zeros(3, dtype=torch.float64)
    for actions, gradient in seen.items():
        weight = torch.where(torch.tensor(actions), chance, 1 - chance).prod()
        expected += weight * gradient
    by_hand = policy_gradient_by_hand(similarities.detach(), rewards)
    torch.testing.assert_close(expected, by_hand, rtol=0, atol=1e-14)


def test_rewards_case_by_case() -> None:
    relevance = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.25]])
    is_current = torch.tensor([[False, True, True, False, False, True, True]])
    is_produced = torch.tensor([[False, False, False, False, True, True, False]])
    assert REWARDS["recall"](relevance, is_current, is_produced).tolist() == [[1, 0, -1, 0, 1, 0, -0.75]]
    assert REWARDS["novelty"](relevance, is_current, is_produced).tolist() == [[1, 0, -1, 0, 0, -1, -0.75]]


def test_only_the_context_tower_moves_and_the_index_stays_byte_for_byte(supervised: Path, tmp_path: Path) -> None:
    out = adapt(tmp_path / "run", supervised, "--steps", "30")
    before, after = (Checkpoint(run).policy().state_dict() for run in (supervised, out))
    for name, table in before.items():
        assert (table.numpy().tobytes() == after[name].numpy().tobytes()) == name.startswith("item_tower")
    assert not [name for name in Checkpoint(out).optimizer_state() if name.startswith("item_tower")]
    for run, root in ((supervised, "old"), (out, "new")):
        export(run, tmp_path / root)
    old, new = tmp_path / "old" / "1", tmp_path / "new" / "1"
    for name in ("items.faiss", "item_ids.npy"):
        assert (old / name).read_bytes() == (new / name).read_bytes(), "no re-index"
    assert (old / "user_tower.onnx").read_bytes() != (new / "user_tower.onnx").read_bytes()


def test_a_resumed_run_is_the_run_that_never_stopped(supervised: Path, tmp_path: Path) -> None:
    pace = ["--checkpoint-every", "10"]
    whole = adapt(tmp_path / "whole", supervised, "--steps", "30", *pace)
    halves = adapt(tmp_path / "halves", supervised, "--steps", "20", *pace)
    adapt(halves, supervised, "--steps", "30", *pace)
    same_checkpoint(whole, halves)


def test_seeds_side_by_side_are_each_the_run_alone(supervised: Path, tmp_path: Path) -> None:
    adapt(tmp_path / "both", supervised, "--steps", "20", "--seeds", "2")
    alone = adapt(tmp_path / "alone", supervised, "--steps", "20", "--seed", "1")
    one, other = (Checkpoint(path).policy().state_dict() for path in (tmp_path / "both" / "seed-1", alone))
    for name, table in one.items():
        torch.testing.assert_close(table, other[name], rtol=0, atol=1e-5)


def precision(run: Path, count: int) -> float:
    """The share of relevant items in the top."""
    top = top_of(Checkpoint(run).policy(), TRUTH, count)
    return float((TRUTH.expected_reward.gather(1, top) > 5).float().mean())


def test_it_learns_and_is_compared(supervised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = adapt(tmp_path / "run", supervised, "--steps", "200", "--learning-rate", "0.003")
    assert precision(out, 2) > precision(supervised, 2) + 0.03
    main(OfflineEval, "python -m offline_eval", ["compare", str(out), "--baseline", str(supervised), "--json"])
    judged = last_json(capsys.readouterr().out)["judged"]
    assert judged[-1]["policy_value"]["mean"] == pytest.approx(Checkpoint(out).description.metrics["policy_value"])


def test_novelty_leaves_what_production_shows(supervised: Path, tmp_path: Path) -> None:
    def overlap(run: Path) -> float:
        top, old = (top_of(Checkpoint(one).policy(), TRUTH, 5) for one in (run, supervised))
        return float((top[:, :, None] == old[:, None]).any(dim=2).float().mean())

    options = ["--steps", "400", "--reward-top", "5", "--learning-rate", "0.01", "--explorer", "uniform"]
    recall, novelty = (adapt(tmp_path / reward, supervised, *options, "--reward", reward) for reward in REWARDS)
    assert overlap(novelty) < 0.5 * overlap(recall)


def trainer_of(supervised: Path, **options: object) -> AdaptingTrainer:
    given = {"estimator": "pg-ret", "init": supervised, "candidates": 5, "relevance": {"relevant_above": 5}, **options}
    learner = settle(TrainConfig.model_validate(given)).begin()
    assert isinstance(learner, AdaptingTrainer)
    return learner


def test_pairs_come_from_top_explorer_and_feedback_by_their_shares(supervised: Path, tmp_path: Path) -> None:
    shown = pl.DataFrame({"context_id": RELEVANT_PAIRS[0], "item_id": RELEVANT_PAIRS[1]})
    shown.with_columns(reward=pl.lit(1)).write_csv(tmp_path / "log.csv")
    options = {"share_current": 0.25, "share_explored": 0.25, "pairs": 2000}
    learner = trainer_of(supervised, from_log=str(tmp_path / "log.csv"), **options)
    learner.ground = learner.ground._replace(explored=torch.full((80, 3), 59))
    contexts, top = torch.tensor([3, 7]), torch.tensor([[0, 1], [2, 3]])
    items = learner.draw_items(contexts, top)
    for row, context in enumerate([3, 7]):
        shares = items[row].bincount(minlength=60) / 2000
        relevant = (TRUTH.expected_reward[context] > 5).float()
        expected = 0.5 * relevant / relevant.sum()
        expected[top[row]] += 0.125
        expected[59] += 0.25
        assert float((shares - expected).abs().max()) < 4 * (0.25 * 0.75 / 2000) ** 0.5


def test_a_context_without_feedback_explores(supervised: Path) -> None:
    shown = by_context(positives_of(TRUTH, 5))
    shown = shown._replace(counts=torch.where(torch.arange(80) == 4, 0, shown.counts))
    drawn = shown.draw(torch.tensor([4]), torch.tensor([[0.0, 0.99]]), torch.tensor([[17, 18]]))
    assert drawn.tolist() == [[17, 18]]


def test_a_reward_of_one_s_own(supervised: Path, tmp_path: Path, refused: Callable[[int], str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def as_recall(relevance, is_current, is_produced):\n    return relevance - is_current.float()\n")
    own = adapt(tmp_path / "own", supervised, "--steps", "10", "--reward", f"{mine}:as_recall")
    known = adapt(tmp_path / "known", supervised, "--steps", "10")
    for name, table in Checkpoint(own).policy().state_dict().items():
        assert torch.equal(table, Checkpoint(known).policy().state_dict()[name])
    mine.write_text("def much(relevance, is_current, is_produced):\n    return relevance + 7\n")
    judgement = (torch.ones(1, 2), torch.ones(1, 2).bool(), torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match=r"gave 8: it must be from -1 to 1"):
        open_reward(f"{mine}:much")(*judgement)
    mine.write_text("def few(relevance, is_current, is_produced):\n    return relevance[0]\n")
    with pytest.raises(ValueError, match=r"gave no tensor of shape \(1, 2\)"):
        open_reward(f"{mine}:few")(*judgement)
    with pytest.raises(ValueError, match="has no function absent"):
        open_reward(f"{mine}:absent")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "estimator (pg-ret) needs --init"),
        (["--init", "INIT", "--reward", "clicks"], "reward (clicks) must be recall, novelty or FILE.py:function"),
        (["--init", "INIT", "--entropy", "0.1"], "entropy (0.1) is for policies over the catalogue"),
        (["--init", "INIT", "--share-current", "0.8"], "share_current (0.8) and share_explored (0.5) exceed 1"),
        (["--init", "INIT", "--share-current", "0.1"], "leave pairs to feedback: name it with --from-log"),
        (["--init", "INIT", "--experts", "3"], "experts (3): the --init run has 1, and its tables stay"),
        (["--init", "INIT", "--variance-reduction", "grpo", "--batch", "8"], "is for rounds that are played"),
        (["--init", "INIT", "--environment", "synthetic", "--contexts", "9"], "its contexts are not the world's"),
        (["--init", "INIT", "--reward-top", "99"], "reward_top (99) exceeds the data's 60 items"),
        (["--init", "nowhere"], "nowhere) holds no checkpoint"),
        (["--init", "INIT", "--relevance.oracle", "http://localhost:1"], "relevant_above (5.0) is for labels"),
    ],
)
def test_what_does_not_fit_is_one_line(
    options: list[str], words: str, supervised: Path, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    given = [str(supervised) if one == "INIT" else one for one in options]
    line = refused(
        command_line(["--estimator", "pg-ret", "--candidates", "5", *RELEVANT, *given, "--out", str(tmp_path / "run")])
    )
    assert words in line


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixture") / "run"
    options = ["--estimator", "infonce", "--experts", "2", "--steps", "40", "--learning-rate", "0.03"]
    assert command_line([*WORLD, *RELEVANT, *options, "--out", str(out)]) == 0
    return out


def test_of_several_experts_the_surest_answers_for_a_pair() -> None:
    """Two experts, three items: of items 2, 0 the first is expert 1's with 5, the second expert 0's with 4."""
    logits = torch.tensor([[[4.0, 0.0, -1.0], [3.0, 1.0, 5.0]]], requires_grad=True)
    found = similarities(logits, torch.tensor([[2, 0]]))
    assert found.tolist() == [[5.0, 4.0]]
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], "nobody else learns of it"


def test_the_top_of_a_mixture_is_what_it_hands_over(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer_of(mixture, reward_top=4)
    contexts, tops = learner.draw_contexts(), []
    monkeypatch.setattr(learner, "draw_items", lambda contexts, top: tops.append(top) or top)
    learner.loss(contexts, learner.policy(contexts))
    assert torch.equal(tops[0], top_of(learner.policy, TRUTH, 4)[contexts])


def test_a_mixture_learns_and_its_index_stays(mixture: Path, tmp_path: Path) -> None:
    options = ["--steps", "200", "--learning-rate", "0.003", "--reward-top", "4"]
    out = adapt(tmp_path / "run", mixture, *options)
    assert precision(out, 4) > precision(mixture, 4) + 0.03
    for run, root in ((mixture, "old"), (out, "new")):
        export(run, tmp_path / root)
    for name in ("items.faiss", "item_ids.npy"):
        assert (tmp_path / "old" / "1" / name).read_bytes() == (tmp_path / "new" / "1" / name).read_bytes()


def test_every_expert_owns_an_item_of_the_top(mixture: Path, refused: Callable[[int], str]) -> None:
    given = ["--estimator", "pg-ret", "--init", str(mixture), "--candidates", "5", "--reward-top", "1"]
    line = refused(command_line(given))
    assert "reward_top (1): the --init run has 2 experts, and each must own an item of the top" in line


def test_init_is_for_pg_ret(supervised: Path, refused: Callable[[int], str]) -> None:
    assert "is for --estimator pg-ret" in refused(command_line([*WORLD, "--init", str(supervised)]))


def test_another_init_is_another_run(supervised: Path, tmp_path: Path, refused: Callable[[int], str]) -> None:
    out = adapt(tmp_path / "run", supervised, "--steps", "2")
    options = ["--estimator", "infonce", "--experts", "1", "--steps", "41", "--learning-rate", "0.03"]
    other = tmp_path / "other"
    assert command_line([*WORLD, *RELEVANT, *options, "--out", str(other)]) == 0
    given = ["--estimator", "pg-ret", "--init", str(other), "--candidates", "5", *RELEVANT, "--steps", "2"]
    line = refused(command_line([*given, "--out", str(out)]))
    assert "holds a run with init" in line


def test_what_the_oracle_does_not_know_earns_nothing(supervised: Path) -> None:
    class Silent:
        def relevance(self, contexts: Tensor, items: Tensor) -> Tensor:
            return torch.full(items.shape, torch.nan)

    learner = trainer_of(supervised)
    learner.ground = learner.ground._replace(oracle=Silent())
    contexts = learner.draw_contexts()
    loss = learner.loss(contexts, learner.policy(contexts))
    gradient = torch.autograd.grad(loss, list(learner.policy.learned().values()))
    assert all(float(one.abs().max()) == 0 for one in gradient)
