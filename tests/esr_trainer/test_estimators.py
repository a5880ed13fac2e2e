import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.quotas import expert_of_position

V_FAMILY = ("v", "v-swr")


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def ordered_sets(num_items: int, num_candidates: int) -> Tensor:
    return torch.tensor(list(permutations(range(num_items), num_candidates)))


def log_probability_by_hand(logits: Tensor, candidates: list[int]) -> float:
    """Position after position: softmax over the items that are left, of the position's expert. logits (M, N)."""
    total = 0.0
    for position, expert in enumerate(expert_of_position(len(candidates), len(logits))):
        left = [item for item in range(logits.shape[1]) if item not in candidates[:position]]
        total += float(logits[expert, candidates[position]] - logits[expert, left].logsumexp(0))
    return total


@pytest.mark.parametrize("name", ["v", "v_swr", "ca", "ca_swr"])
@pytest.mark.parametrize("case", ["single_k5_l1", "single_k10_l3", "moe3_k7_l2", "moe5_k10_l5", "single_k50_l5"])
def test_golden_log_probabilities_and_gradients(shared: Path, case: str, name: str) -> None:
    with np.load(shared / "golden" / "estimators.npz") as golden:
        if f"{case}/{name}/log_prob" not in golden:
            assert (case[:3], name) == ("moe", "ca_swr"), "only ca-swr over several experts has no published number"
            return
        logits = torch.tensor(golden[f"{case}/logits"]).transpose(0, 1).clone().requires_grad_()
        slate, candidates = torch.tensor(golden[f"{case}/slate"]), torch.tensor(golden[f"{case}/candidates"])
        expected = torch.tensor(golden[f"{case}/{name}/log_prob"]).reshape(len(slate), -1).expand(slate.shape)
        log_prob = ESTIMATORS[name.replace("_", "-")](logits, slate, candidates)
        loss = -(torch.tensor(golden[f"{case}/reward"]) * log_prob).mean()
        loss.backward()
        assert logits.grad is not None
        torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(loss.item(), float(golden[f"{case}/{name}/loss"]), rtol=0, atol=1e-6)
        gradient = torch.tensor(golden[f"{case}/{name}/grad_logits"]).transpose(0, 1)
        torch.testing.assert_close(logits.grad, gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_v_is_the_probability_of_the_ordered_candidates(num_experts: int) -> None:
    sets = ordered_sets(6, 3)
    logits = normal(1, num_experts, 6).expand(len(sets), -1, -1)
    log_prob = ESTIMATORS["v"](logits, sets[:, :1], sets)[:, 0]
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    by_hand = [log_probability_by_hand(logits[0], candidates) for candidates in sets.tolist()]
    torch.testing.assert_close(log_prob, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-12)


def test_ca_on_three_items_by_hand() -> None:
    # Weights 1, 2, 4, K = 2, one expert. Without item 0 the greedy positions are 2, 1. So item 0 is taken at position 1
    # with p = 1/7, and at position 2 (item 2 is gone) with p = 1/3: pi(0) = 1 - 6/7 * 2/3 = 3/7.
    # Item 2 in its own place is replaced by item 0: S = (0, 1), p = 4/7 then 4/6: pi(2) = 1 - 3/7 * 1/3 = 6/7.
    logits = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64).log()
    pi = ESTIMATORS["ca"](logits, torch.tensor([[0, 2]]), torch.tensor([[2, 1]])).exp()
    torch.testing.assert_close(pi, torch.tensor([[3 / 7, 6 / 7]], dtype=torch.float64), rtol=0, atol=1e-12)


def test_ca_swr_is_the_expected_share_of_draws() -> None:
    # K = 3 over two experts: quotas 2 and 1. Expert 1 gives the item 1/4, expert 2 1/2: 2/3 * 1/4 + 1/3 * 1/2 = 1/3.
    logits = torch.tensor([[[1.0, 1.0, 2.0], [1.0, 0.5, 0.5]]], dtype=torch.float64).log()
    pi = ESTIMATORS["ca-swr"](logits, torch.tensor([[0]]), torch.tensor([[0, 1, 2]])).exp()
    assert pi.item() == pytest.approx(1 / 3, abs=1e-12)


def test_one_position_and_one_expert_make_all_equal() -> None:
    logits, items = normal(4, 1, 7), torch.tensor([[0], [3], [6], [2]])
    expected = logits[:, 0].log_softmax(1).gather(1, items)
    for name, estimator in ESTIMATORS.items():
        if name != "ca-poisson":  # equal only in a limit: test_inclusion.py
            torch.testing.assert_close(estimator(logits, items, items), expected, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_shape_and_gradient_with_more_experts_than_positions(name: str) -> None:
    logits = normal(2, 5, 8).requires_grad_()
    candidates = torch.tensor([[4, 1, 0], [7, 2, 3]])
    log_prob = ESTIMATORS[name](logits, candidates[:, :2], candidates)
    assert log_prob.shape == (2, 2)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 3:] == 0).all(), "an expert without a position learns nothing"


@st.composite
def hard_cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """float32 logits (1, M, N) in [-80, 80] with ties and leaders, and candidates (1, K), K from 1 to N."""
    num_items = draw(st.integers(2, 9))
    num_experts = draw(st.sampled_from([1, 1, 2, 3]))
    one = st.one_of(st.floats(-80, 80, width=32), st.sampled_from([-80.0, 0.0, 18.0, 80.0]))
    rows = draw(st.lists(one, min_size=num_experts * num_items, max_size=num_experts * num_items))
    num_candidates = draw(st.sampled_from(sorted({1, num_items // 2 or 1, num_items - 1, num_items})))
    candidates = draw(st.permutations(range(num_items)))[:num_candidates]
    return torch.tensor(rows).view(1, num_experts, num_items), torch.tensor([candidates])


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@given(case=hard_cases())
@settings(max_examples=150, deadline=None)
def test_finite_never_above_zero_and_right(name: str, case: tuple[Tensor, Tensor]) -> None:
    logits, candidates = case
    logits.requires_grad_()
    slate = candidates[:, :2]
    log_prob = ESTIMATORS[name](logits, slate, candidates)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert log_prob.isfinite().all()
    assert (log_prob <= 0).all()
    assert gradient.isfinite().all()
    exact = ESTIMATORS[name](logits.detach().double(), slate, candidates)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("lead", [17.0, 18.0, 80.0, 160.0])
@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_finite_when_one_item_leads(name: str, lead: float) -> None:
    # The published code is nan from a lead of 18 on. The leader is shown in one context, the last item in the other.
    logits = torch.full((2, 1, 50), -80.0)
    logits[:, :, 3] += lead
    logits.requires_grad_()
    candidates = torch.tensor([[3, 0, 1, 2], [0, 1, 2, 49]])
    log_prob = ESTIMATORS[name](logits, candidates[:, -1:], candidates)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert log_prob.isfinite().all()
    assert gradient.isfinite().all()
    exact = ESTIMATORS[name](logits.detach().double(), candidates[:, -1:], candidates)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-4)


def enumerated(num_experts: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N = 6, K = 3: one context's logits (1, M, 6), all ordered sets, their log-probabilities, and q(a) > 0."""
    logits = normal(1, num_experts, 6, seed=seed).requires_grad_()
    sets = ordered_sets(6, 3)
    log_prob = ESTIMATORS["v"](logits.expand(len(sets), -1, -1), sets[:, :1], sets)[:, 0]
    return logits, sets, log_prob, normal(6, seed=seed + 100).exp()


@pytest.mark.parametrize("num_experts", [1, 2])
def test_theorem_3_1(num_experts: int) -> None:
    """E[r grad log P(A)] = E[r grad log P(a in A)] + E[r grad log P(A | a in A)], a the item that the LSR shows."""
    logits, sets, log_prob, reward = enumerated(num_experts, seed=1)
    shown = sets.gather(1, reward[sets].argmax(dim=1, keepdim=True))[:, 0]  # optimal LSR
    log_inclusion = torch.stack([log_prob[(sets == item).any(1)].logsumexp(0) for item in range(6)])
    weight = log_prob.exp().detach() * reward[shown]
    total, credit, residual = (
        torch.autograd.grad((weight * term).sum(), logits, retain_graph=True)[0]
        for term in (log_prob, log_inclusion[shown], log_prob - log_inclusion[shown])
    )
    torch.testing.assert_close(total, credit + residual, rtol=0, atol=1e-12)
    value = (log_prob.exp() * reward[shown]).sum()
    torch.testing.assert_close(total, torch.autograd.grad(value, logits)[0], rtol=0, atol=1e-12)
    assert float(residual.abs().max()) > 1e-3, "the residual is what CA-PG leaves out"


def followed(rewards: Tensor, propensity: Tensor, num_candidates: int) -> list[int]:
    """The candidates that CA-PG ends at: gradient ascent on sum_a pi_LSR(a) q(a) log P(a in A) with one expert."""
    logits = torch.zeros(1, 1, len(rewards), dtype=torch.float64, requires_grad=True)
    candidates = torch.arange(num_candidates)[None]
    everything = torch.arange(len(rewards))[None]
    for _ in range(200):  # from 50 on, those inside are five apart from those outside
        pi = ESTIMATORS["ca-poisson"](logits, everything, candidates)[0].exp()
        (gradient,) = torch.autograd.grad((pi * propensity * rewards).sum(), logits)
        with torch.no_grad():
            logits += gradient
    return sorted(logits[0, 0].topk(num_candidates).indices.tolist())


def test_theorem_3_3_holds_and_fails() -> None:
    """CA follows pi_LSR(a | x, a in A) q(x, a): it finds the top K iff no outsider's discounted reward is larger."""
    rewards = torch.tensor([5.0, 4.0, 1.0, 0.5], dtype=torch.float64)
    condition_holds = torch.tensor([0.5, 0.5, 0.9, 0.9], dtype=torch.float64)  # 0.9 / 0.5 < 4 / 1
    condition_fails = torch.tensor([0.5, 0.1, 0.9, 0.9], dtype=torch.float64)  # 0.9 / 0.1 > 4 / 1
    assert followed(rewards, condition_holds, 2) == [0, 1]
    assert followed(rewards, condition_fails, 2) == [0, 2]


def test_ca_of_an_item_that_is_sure_to_be_in_is_one_with_gradient_zero() -> None:
    logits = normal(1, 2, 5).requires_grad_()
    everything = torch.tensor([[4, 2, 0, 1, 3]])
    log_prob = ESTIMATORS["ca"](logits, everything, everything)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert (log_prob == 0).all()
    assert (gradient == 0).all()


def repeated(scale: float, num_experts: int) -> tuple[Tensor, Tensor]:
    """Logits of 12 columns, (2, M, 12): ten single items, one that stands for none, and two for 5 and 3 items."""
    logits = normal(2, num_experts, 12, seed=3, scale=scale)
    logits[:, :, 10:] -= 2 * scale  # `ca` takes its greedy items from the single ones
    log_weight = torch.tensor([0.0] * 9 + [-torch.inf, math.log(5), math.log(3)], dtype=torch.float64)
    return logits, log_weight.expand(2, -1)


@pytest.mark.parametrize("scale", [0.3, 2.0, 7.0, 15.0, 40.0])
@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"ca-heads"}))
def test_a_weight_is_as_many_items_of_the_same_logit(name: str, num_experts: int, scale: float) -> None:
    logits, log_weight = repeated(scale, num_experts)
    candidates = torch.tensor([[4, 1, 0, 8], [7, 2, 3, 5]])
    column = torch.tensor([*range(9), *[10] * 5, *[11] * 3])  # what the columns stand for, item by item
    one_by_one = ESTIMATORS[name](logits[:, :, column].requires_grad_(), candidates[:, :2], candidates)
    logits.requires_grad_()
    weighed = ESTIMATORS[name](logits, candidates[:, :2], candidates, log_weight)
    torch.testing.assert_close(weighed, one_by_one, rtol=1e-7, atol=1e-9)
    whole = logits.detach()[:, :, column].requires_grad_()
    (of_items,) = torch.autograd.grad(ESTIMATORS[name](whole, candidates[:, :2], candidates).sum(), whole)
    (of_columns,) = torch.autograd.grad(weighed.sum(), logits)
    expected = torch.zeros_like(of_columns).index_add_(2, column, of_items)
    torch.testing.assert_close(of_columns, expected, rtol=1e-6, atol=1e-8)


def test_draws_that_follow_whole_items_refuse_weights() -> None:
    logits, log_weight = repeated(1.0, 1)
    items = torch.tensor([[0], [1]])
    with pytest.raises(ValueError, match="has no form for columns with weights"):
        ESTIMATORS["ca-heads"](logits, items, items, log_weight)
