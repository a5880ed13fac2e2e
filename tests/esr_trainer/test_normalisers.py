import math

import pytest
import torch

from esr_trainer.normalisers import entropy, log_softmax_of, taken_and_left

TAKEN = torch.tensor([[3, 0, 6], [1, 2, 5]])


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_log_softmax_and_its_gradient_also_of_an_item_asked_for_twice() -> None:
    logits = normal(2, 3, 7).requires_grad_()
    items = torch.tensor([[3, 3], [1, 6]])
    expected = logits.log_softmax(dim=2).gather(2, items[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(log_softmax_of(logits, items), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda f: log_softmax_of(f, items), (logits,), atol=1e-8)


@pytest.mark.parametrize("num_items", [7, 8])
def test_what_is_left_by_hand_and_its_gradient(num_items: int) -> None:
    logits = normal(2, 3, num_items).requires_grad_()
    picked, left = taken_and_left(logits, TAKEN)
    for row, taken in enumerate(TAKEN.tolist()):
        for position, item in enumerate(taken):
            there = [other for other in range(num_items) if other not in taken[:position]]
            torch.testing.assert_close(left[row, :, position], logits[row][:, there].logsumexp(1), rtol=0, atol=1e-12)
            torch.testing.assert_close(picked[row, :, position], logits[row, :, item], rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda f: taken_and_left(f, TAKEN), (logits,), atol=1e-8)


def test_what_is_left_far_below_the_taken_item_keeps_its_share_in_float32() -> None:
    # After the leader only the others are left, 160 below: each has the share it has among themselves.
    logits = torch.full((1, 1, 5), -80.0)
    logits[0, 0, 2] = 80.0
    logits.requires_grad_()
    _, left = taken_and_left(logits, torch.tensor([[2, 0]]))
    assert left[0, 0, 1].item() == pytest.approx(-80 + torch.tensor(4.0).log().item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(left[0, 0, 1], logits)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([0.25, 0.25, 0, 0.25, 0.25]), rtol=0, atol=1e-6)


def test_entropy_by_hand_and_its_gradient() -> None:
    """Uniform over 4: log 4. Weights 1 and 3: log 4 - (3 / 4) log 3. One sure item: 0."""
    rows = [[0.0] * 4, [0.0, math.log(3), -1000, -1000], [80.0, -80, -80, -80]]
    logits = torch.tensor(rows, dtype=torch.float64)[:, None].requires_grad_()
    found = entropy(logits)
    assert found[:, 0].tolist() == pytest.approx([math.log(4), math.log(4) - 0.75 * math.log(3), 0])
    probability = logits.softmax(dim=2)
    expected = -probability * (logits.log_softmax(dim=2) + found[:, :, None])
    torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], expected)


def test_entropy_of_columns_that_stand_for_several_items() -> None:
    logits = normal(2, 3, 7).requires_grad_()
    log_weight = torch.tensor([0.0, 0, 0, 0, -math.inf, math.log(4), math.log(2)], dtype=torch.float64)
    column = torch.tensor([0, 1, 2, 3, 5, 5, 5, 5, 6, 6])
    found, expected = entropy(logits, log_weight.expand(2, -1)), entropy(logits[:, :, column])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
