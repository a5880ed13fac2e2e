import math

import pytest
import torch
from torch import Tensor

from esr_trainer import reward_model
from esr_trainer.reward_model import Description, Interactions, RewardModel, fit, from_bytes, to_bytes

CONTEXTS, ITEMS = 60, 50


def tastes(seed: int = 0) -> Tensor:
    """Expected rewards of rank 2 and some popularity, all above 0, (C, N)."""
    generator = torch.Generator().manual_seed(seed)
    match = torch.randn(CONTEXTS, 2, generator=generator) @ torch.randn(2, ITEMS, generator=generator)
    return torch.nn.functional.softplus(match + 0.5 * torch.randn(1, ITEMS, generator=generator))


def shown(expected: Tensor, count: int = 10_000, noise: float = 0.1, weights: Tensor | None = None) -> Interactions:
    generator = torch.Generator().manual_seed(1)
    contexts = torch.randint(CONTEXTS, (count,), generator=generator)
    items = torch.randint(ITEMS, (count,), generator=generator)
    rewards = (expected[contexts, items] + noise * torch.randn(count, generator=generator)).clamp(min=0)
    return Interactions(contexts, items, rewards, torch.ones(count) if weights is None else weights)


def test_forward_and_matrix_by_hand() -> None:
    model = RewardModel(2, 3, "identity")
    with torch.no_grad():
        model.contexts[1, 0], model.contexts[1, -1] = 2.0, 0.25
        model.items[2, 0], model.items[2, -1] = 3.0, 0.5
        model.level.fill_(1.0)
        model.scale.fill_(10.0)
    expected = 10 * (1 + 0.25 + 0.5 + 2 * 3)
    assert model(torch.tensor([1, 0]), torch.tensor([[2, 0], [0, 2]])).tolist() == [[expected, 12.5], [10, 15]]
    assert model.matrix().tolist() == [[10, 10, 15], [12.5, 12.5, expected]]
    model.link = "softplus"
    assert model.matrix()[0, 2].item() == pytest.approx(10 * math.log1p(math.exp(1.5)))


def test_a_model_finds_the_tastes_behind_the_rewards() -> None:
    expected = tastes()
    model, errors = fit(shown(expected), CONTEXTS, ITEMS, 0, "")
    assert errors.model < 0.04, "the noise is 0.01"
    assert errors.model < 0.1 * errors.popularity < 0.1 * errors.constant
    assert float((model.matrix() - expected).square().mean()) < 0.03
    assert (model.matrix() >= 0).all(), "as all rewards are"


def test_errors_of_the_popular_and_the_constant_prediction() -> None:
    # Every item has one reward, whoever sees it: its mean predicts it, and a constant is off by the variance.
    expected = torch.linspace(0, 2, ITEMS).expand(CONTEXTS, -1)
    _, errors = fit(shown(expected, noise=0), CONTEXTS, ITEMS, 0, "")
    assert errors.popularity == pytest.approx(0, abs=1e-9)
    assert errors.constant == pytest.approx(float(expected[0].var(correction=0)), rel=0.1)


def test_rewards_may_be_negative_and_of_any_size() -> None:
    interactions = shown(tastes())
    model, errors = fit(interactions._replace(rewards=1000 * (interactions.rewards - 1)), CONTEXTS, ITEMS, 0, "")
    assert errors.model < 0.1 * errors.popularity
    assert model.matrix().min() < 0


def test_rewards_that_are_all_equal_are_predicted() -> None:
    for value in (0.0, 3.0):
        interactions = shown(torch.full((CONTEXTS, ITEMS), value), count=3000, noise=0)
        model, errors = fit(interactions, CONTEXTS, ITEMS, 0, "")
        torch.testing.assert_close(model.matrix(), torch.full((CONTEXTS, ITEMS), value), rtol=0.01, atol=0.05)
        assert errors.constant == 0


def test_weights_decide_what_counts() -> None:
    # Everything was shown twice, with rewards 0 and 4; the second counts three times as much.
    interactions = shown(torch.zeros(CONTEXTS, ITEMS), noise=0)
    second = torch.arange(len(interactions.rewards)) % 2 == 1
    rewards, weights = torch.where(second, 4.0, 0.0), torch.where(second, 1.5, 0.5)
    model, _ = fit(interactions._replace(rewards=rewards, weights=weights), CONTEXTS, ITEMS, 0, "")
    assert float(model.matrix().mean()) == pytest.approx(3, abs=0.1)


def test_a_seed_decides_the_fit() -> None:
    one, again, other = (fit(shown(tastes(), count=1000), CONTEXTS, ITEMS, seed, "")[0].matrix() for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_saved_model_is_the_model() -> None:
    model, errors = fit(shown(tastes(), count=2000), CONTEXTS, ITEMS, 0, "")
    ids = [tuple(f"{kind}{number}" for number in range(count)) for kind, count in (("u", CONTEXTS), ("v", ITEMS))]
    description = Description(
        link="softplus", context_ids=ids[0], item_ids=ids[1], num_interactions=2000, errors=errors
    )
    content = to_bytes(model, description)
    assert content == to_bytes(model, description), "its SHA-256 is the model's"
    found, found_description = from_bytes(content)
    assert torch.equal(found.matrix(), model.matrix())
    assert found_description == description


@pytest.mark.parametrize("damage", [b"", b"no safetensors", "half", "header"])
def test_a_damaged_model_is_refused(damage: bytes | str) -> None:
    model = RewardModel(2, 2, "identity")
    errors = reward_model.HeldOutErrors(model=0, popularity=0, constant=0)
    description = Description(
        link="identity", context_ids=("a", "b"), item_ids=("c", "d"), num_interactions=2, errors=errors
    )
    content = to_bytes(model, description)
    cut = {"half": content[: len(content) // 2], "header": content.replace(b"link", b"knil")}
    with pytest.raises(ValueError, match="holds no reward model"):
        from_bytes(cut[damage] if isinstance(damage, str) else damage)
