import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esr_trainer.set_draws import draw_sets, inverse, sorted_uniforms


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(scale=st.sampled_from([0.0, 1.0, 5.0, 60.0]), num_items=st.sampled_from([1, 2, 7, 3000]), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_guide_table_finds_what_a_binary_search_finds(scale: float, num_items: int, seed: int) -> None:
    logits = torch.randn(3, num_items, generator=generator(seed)) * scale
    uniform = torch.cat(
        [torch.rand(3, 500, generator=generator(seed)), torch.tensor([[0.0, 1.0]]).expand(3, -1)], dim=1
    )
    probabilities = logits.softmax(dim=1)
    reached = probabilities.cumsum(dim=1)
    reached /= reached[:, -1:].clone()
    expected = torch.searchsorted(reached, uniform.clamp(max=1 - 2**-24), right=True)
    assert torch.equal(inverse(probabilities, uniform), expected)
    assert (probabilities.gather(1, expected) > 0).all(), "what has no chance is never drawn"


def test_sets_are_ascending_draws_of_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0, 1.0, 3.0], [2.0, 0.0, 0.0, 0.0, -50.0]])
    sets = draw_sets(logits, 20_000, 3, generator())
    assert sets.shape == (2, 20_000, 3)
    assert (sets.diff(dim=2) >= 0).all()
    for row, chance in zip(sets, logits.softmax(dim=1).double(), strict=True):
        possible = chance > 1e-9
        found = torch.bincount(row.flatten(), minlength=5)
        assert (found[~possible] == 0).all()
        expected = chance[possible] / chance[possible].sum() * 60_000
        assert stats.chisquare(found[possible].numpy(), expected.numpy()).pvalue > 1e-3


def test_sorted_uniforms_are_order_statistics() -> None:
    uniform = sorted_uniforms((2, 20_000, 3), generator(), torch.zeros(1))
    for place in range(3):  # the k-th of three uniform draws ~ Beta(k, 4 - k)
        law = stats.beta(place + 1, 3 - place)
        assert stats.kstest(uniform[0, :, place].numpy(), law.cdf).pvalue > 1e-3


def test_sets_of_no_draw_are_empty_and_the_generator_decides() -> None:
    logits = torch.zeros(2, 4)
    assert draw_sets(logits, 5, 0, generator()).shape == (2, 5, 0)
    assert torch.equal(draw_sets(logits, 9, 2, generator(1)), draw_sets(logits, 9, 2, generator(1)))
    assert not torch.equal(draw_sets(logits, 9, 2, generator(1)), draw_sets(logits, 9, 2, generator(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_item_is_always_drawn(dtype: torch.dtype) -> None:
    logits = torch.full((1, 50), -400.0, dtype=dtype)
    logits[0, 17] = 400.0
    assert (draw_sets(logits, 10, 4, generator()) == 17).all()
