"""An LSR that is known, fitted to what it chose."""

import math

import numpy as np
import pytest
import torch

from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from offline_eval.logs.lsr_choices import (
    WITNESSES,
    Choices,
    LsrChoices,
    fit_choices,
    log_chances,
    log_likelihood,
    side_by_side,
)

NUM_CONTEXTS, NUM_ITEMS = 12, 15


def choices_by(ranker: str, num_rounds: int, is_told: bool = False) -> tuple[torch.Tensor, Choices]:
    """Utilities (C, N), and two slots filled from six random candidates."""
    generator = torch.Generator().manual_seed(0)
    taste, kind = (torch.randn((size, 4), generator=generator) for size in (NUM_CONTEXTS, NUM_ITEMS))
    scores = taste @ kind.T
    contexts = torch.randint(NUM_CONTEXTS, (num_rounds,), generator=generator)
    candidates = torch.rand((num_rounds, NUM_ITEMS), generator=generator).argsort(dim=1)[:, :6]
    seen = scores[contexts[:, None], candidates]
    slate = LATE_STAGE_RANKERS[ranker].rank(seen, 2, generator)
    chances = LATE_STAGE_RANKERS[ranker].propensities(seen, slate).gather(2, slate[:, :, None])[..., 0]
    return scores, Choices(contexts, candidates, slate, chances if is_told else unknown(slate))


def unknown(slate: torch.Tensor) -> torch.Tensor:
    return torch.full(slate.shape, math.nan)


def fitted(choices: Choices) -> tuple[np.ndarray, float, float]:
    model, fit = fit_choices(choices, NUM_CONTEXTS, NUM_ITEMS)
    return model.utilities(torch.arange(NUM_CONTEXTS), torch.arange(NUM_ITEMS)), fit.model, fit.uniform


def test_the_likelihood_is_that_of_plackett_and_luce() -> None:
    utilities = torch.tensor([[0.0, math.log(2), math.log(5), 9.0], [1.0, 1.0, 1.0, 1.0]])
    slate = torch.tensor([[2, 0], [1, -1]])
    choices = Choices(torch.zeros(2).long(), torch.tensor([[4, 5, 6, -1], [4, 5, 6, 7]]), slate, unknown(slate))
    log_chance = log_chances(utilities, choices)
    assert log_chance.flatten().tolist() == pytest.approx([math.log(5 / 8), math.log(1 / 3), math.log(1 / 4), 0])
    found = log_likelihood(log_chance, choices)
    assert found.tolist() == pytest.approx([math.log(5 / 8) + math.log(1 / 3), math.log(1 / 4)])
    told = log_likelihood(log_chance, choices._replace(chances=torch.tensor([[0.9, math.nan], [math.nan] * 2])))
    said = 0.9 * math.log(5 / 8) + 0.1 * math.log(3 / 8)
    assert (told - found).tolist() == pytest.approx([WITNESSES * said, 0], rel=1e-5)


@pytest.mark.parametrize("chances", [[math.nan] * 3, [0.5, 1.0, math.nan]])
def test_a_round_that_shows_all_it_has_has_a_gradient(chances: list[float]) -> None:
    utilities = torch.zeros((1, 2), requires_grad=True)
    slate = torch.tensor([[1, 0, -1]])
    choices = Choices(torch.tensor([0]), torch.tensor([[3, 4]]), slate, torch.tensor([chances]))
    log_likelihood(log_chances(utilities, choices), choices).sum().backward()
    assert utilities.grad is not None
    assert utilities.grad.flatten().tolist() == pytest.approx([-0.5, 0.5], abs=1e-4)


def test_what_the_lsr_tells_of_itself_is_worth_many_choices() -> None:
    scores, choices = choices_by("noisy", 600, is_told=True)
    known = scores.numpy() - scores.numpy().mean(axis=1, keepdims=True)
    errors = []
    for chances in (choices.chances, unknown(choices.slate)):
        found, _, _ = fitted(choices._replace(chances=chances))
        errors.append(np.square(known - found + found.mean(axis=1, keepdims=True)).mean())
    assert errors[0] < errors[1] / 4


def test_what_it_tells_is_left_aside_where_that_predicts_better() -> None:
    """An LSR that sorts tells that it is sure, which says nothing of the order behind."""
    _, choices = choices_by("optimal", 150, is_told=True)
    _, told, uniform = fitted(choices)
    _, silent, _ = fitted(choices._replace(chances=unknown(choices.slate)))
    assert told <= silent < uniform


def test_a_noisy_lsr_is_found_again() -> None:
    scores, choices = choices_by("noisy", 6000)
    utilities, model, uniform = fitted(choices)
    known = scores.numpy() - scores.numpy().mean(axis=1, keepdims=True)
    found = utilities - utilities.mean(axis=1, keepdims=True)
    assert np.corrcoef(known.ravel(), found.ravel())[0, 1] > 0.95
    assert (known * found).sum() / (known**2).sum() == pytest.approx(1, abs=0.2)
    assert uniform == pytest.approx((math.log(6) + math.log(5)) / 2, abs=1e-3)
    assert model < uniform - 0.4


def test_an_lsr_that_sorts_is_sharp() -> None:
    scores, choices = choices_by("optimal", 6000)
    utilities, model, _ = fitted(choices)
    assert model < 0.15
    assert (utilities.argmax(axis=1) == scores.numpy().argmax(axis=1)).mean() > 0.9


def test_of_a_uniform_lsr_nothing_is_made_up() -> None:
    utilities, model, uniform = fitted(choices_by("uniform", 600)[1])
    assert (utilities == 0).all()
    assert model == uniform


def test_what_nothing_is_known_of_is_usual() -> None:
    model = LsrChoices(2, 3)
    torch.nn.init.ones_(model.bias)
    torch.nn.init.ones_(model.contexts)
    torch.nn.init.ones_(model.items)
    found = model.utilities(torch.tensor([1, -1]), torch.tensor([0, -1, 2]))
    assert found.tolist() == [[11.0, 0.0, 11.0], [1.0, 0.0, 1.0]]


def test_rounds_of_other_sizes_are_filled_up() -> None:
    one = Choices(torch.tensor([0]), torch.tensor([[1, 2, 3]]), torch.tensor([[0]]), torch.tensor([[0.5]]))
    other = Choices(torch.tensor([1]), torch.tensor([[4, 5]]), torch.tensor([[1, 0]]), torch.tensor([[0.25, 1]]))
    together = side_by_side([one, other])
    assert together.chances.nan_to_num(-1).tolist() == [[0.5, -1], [0.25, 1]]
    assert together.candidates.tolist() == [[1, 2, 3], [4, 5, -1]]
    assert together.slate.tolist() == [[0, -1], [1, 0]]
    assert together.contexts.tolist() == [0, 1]
