"""The chance of a slate slot by slot, against every slate that there is; and what estimators make of it."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from esr_trainer.estimators import v
from offline_eval.logs.log_evaluation import LogQuestion, evaluate
from offline_eval.logs.slate_probabilities import log_of_slots, log_of_slots_alone
from offline_eval.logs.target_policies import TargetPolicy

NUM_ITEMS, NUM_SLOTS = 5, 3
SLATES = np.array(list(itertools.permutations(range(NUM_ITEMS), NUM_SLOTS)))


def random_logits(num_contexts: int, num_experts: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num_contexts, num_experts, NUM_ITEMS), generator=generator, dtype=torch.float64)


def every_slate(logits: torch.Tensor) -> np.ndarray:
    """The probability of each of SLATES in one context: (M, N) -> (60,)."""
    many = logits.expand(len(SLATES), -1, -1)
    slates = torch.from_numpy(SLATES)
    return v(many, slates[:, :1], slates)[:, 0].exp().numpy()


@pytest.mark.parametrize("num_experts", [1, 2, 4])
def test_the_slots_of_a_slate_multiply_to_it(num_experts: int) -> None:
    (logits,) = random_logits(1, num_experts, 0)
    chances = np.exp(log_of_slots(logits.expand(len(SLATES), -1, -1), SLATES))
    assert chances.prod(axis=1) == pytest.approx(every_slate(logits), abs=1e-12)
    assert chances.prod(axis=1).sum() == pytest.approx(1)


@pytest.mark.parametrize("num_experts", [1, 2, 4])
def test_the_chance_of_a_slot_alone_is_the_sum_over_slates(num_experts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline_eval.logs.slate_probabilities.PREFIXES", 20_000)
    logits = random_logits(2, num_experts, 1)
    place = np.repeat([0, 1], len(SLATES))
    found = np.exp(log_of_slots_alone(logits, place, np.tile(SLATES, (2, 1))))
    for context in range(2):
        chance = every_slate(logits[context])
        of_context = found[place == context]
        for slot, item in itertools.product(range(NUM_SLOTS), range(NUM_ITEMS)):
            has = SLATES[:, slot] == item
            near = 1e-12 if slot == 0 else 0.015  # four standard errors of a share of 20,000
            assert of_context[has, slot] == pytest.approx(chance[has].sum(), abs=near)


def test_what_cannot_be_drawn_has_no_chance_and_leaves_the_slots_above_theirs() -> None:
    logits = random_logits(1, 2, 2)
    sound = log_of_slots(logits, np.array([[3, 1, 0]]))
    for slate in ([3, -1, 0], [3, 3, 0], [3, -1, -1]):
        (found,) = log_of_slots(logits, np.array([slate]))
        assert found[0] == sound[0, 0]
        assert (found[1:] == -np.inf).all()
    assert log_of_slots_alone(logits, np.array([0]), np.array([[3, -1, 0]]))[0, 1] == -np.inf


def test_estimates_from_a_log_of_slates_hold_the_value(tmp_path: Path) -> None:
    """Rewards depend on the item and its slot alone, as every one of the estimators but one may assume."""
    contexts, rounds = 4, 8000
    generator = np.random.default_rng(0)
    worth = generator.uniform(0, 2, (contexts, NUM_SLOTS, NUM_ITEMS))
    logging, target = random_logits(contexts, 1, 3) / 2, 2 * torch.from_numpy(worth.mean(axis=1))[:, None]
    chances = np.stack([every_slate(one) for one in logging])
    context = generator.integers(contexts, size=rounds)
    slates = np.stack([SLATES[generator.choice(len(SLATES), p=chances[one])] for one in context])
    reward = worth[context[:, None], np.arange(NUM_SLOTS), slates] + generator.normal(size=slates.shape)
    marginal = np.stack(
        [[(chances[one] * (SLATES[:, slot] == item)).sum() for slot, item in enumerate(slate)]
         for one, slate in zip(context, slates, strict=True)]
    )  # fmt: skip
    pl.DataFrame(
        {
            "round_id": np.repeat(np.arange(rounds), NUM_SLOTS),
            "slot": np.tile(np.arange(NUM_SLOTS) + 1, rounds),
            "context_id": np.repeat(context, NUM_SLOTS).astype(str),
            "item_id": slates.flatten().astype(str),
            "reward": reward.flatten(),
            "propensity": np.exp(log_of_slots(logging[context], slates)).flatten(),
            "slot_propensity": marginal.flatten(),
        }
    ).write_csv(tmp_path / "slates.csv")

    names = tuple(map(str, range(NUM_ITEMS)))
    policy = TargetPolicy("target", tuple(map(str, range(contexts))), names, 1, lambda rows: target[rows].numpy())
    found = evaluate(LogQuestion(str(tmp_path / "slates.csv")), [policy])

    shown = worth[:, np.arange(NUM_SLOTS), SLATES].sum(axis=2)  # (contexts, slates)
    value = np.mean([(every_slate(one) * of_slates).sum() for one, of_slates in zip(target, shown, strict=True)])
    logged = np.mean([(chance * of_slates).sum() for chance, of_slates in zip(chances, shown, strict=True)])
    assert found.kind == "marginal-slates"
    estimates = {one.estimator: one.value for one in found.judged[0].estimated}
    assert set(estimates) == {"snips", "sips", "rips", "iips", "pseudo-inverse"}
    for name in ("snips", "sips", "rips", "iips"):
        one = estimates[name]
        assert one.low < value < one.high, name
        assert logged < one.low, name
