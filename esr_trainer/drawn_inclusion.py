"""The inclusion probabilities that are logged with a draw: as near to what draws do as is cheap.

Exact for one draw and for two, whatever their experts: with p_1 and p_2 the softmax of the first and of the second
draw's expert, and S = sum_b p_1(b) / (1 - p_2(b)),

    pi(a) = p_1(a) + p_2(a) (S - p_1(a) / (1 - p_2(a))).

Quotas up to 8 draw by draw (`esr_trainer.head_inclusion`), with enough heads to follow all draws of the largest one;
else, and where the draws cannot be followed, ca-poisson (`esr_trainer.inclusion`). Measured error sum_a |pi - pi of the
draws| / K, which is how far a logged propensity is off on average: at most 0.40 % draw by draw; 0.45 to 1.20 % where
quotas are 9, 0.48 to 0.85 % where they are 12 (`pytest -m slow -n 0 -s tests/serving/test_sampling.py`: M = 1 and 5,
150 and 1,000 items, temperatures 0.5 and 0.2). `serving.sampling` is the NumPy twin.

Axes: B batch, M experts, N items.
"""

import torch
from torch import Tensor

from esr_trainer.head_inclusion import log_inclusion, races
from esr_trainer.inclusion import log_inclusion_probabilities
from esr_trainer.quotas import num_heads

CHANCES = 1 << 22
"""Chances of sets of heads that are held at once."""


def log_drawn_inclusion(logits: Tensor, num_candidates: int) -> Tensor:
    """log pi(a) of every item, without gradient.

    Args:
        logits: (B, M, N), finite.
        num_candidates: K, at most N.

    Returns:
        (B, N), float64, none above 0; exp sums to K in every row, up to rounding.
    """
    logits = logits.detach().double()
    _, num_experts, num_items = logits.shape
    if num_candidates == num_items:
        return torch.zeros_like(logits[:, 0])
    if num_candidates <= 2:
        return first_two_draws(logits, num_candidates)
    heads = num_heads(num_items, num_candidates, num_experts)
    if not heads:
        return log_inclusion_probabilities(logits, num_candidates)
    parts = torch.split(logits, max(1, CHANCES >> heads))
    return torch.cat([draw_by_draw(part, num_candidates, heads) for part in parts])


def first_two_draws(logits: Tensor, num_candidates: int) -> Tensor:
    """log pi of one draw or two, whatever their experts: (B, M, N) -> (B, N); exact."""
    first = logits[:, 0].log_softmax(dim=1)
    if num_candidates == 1:
        return first
    second = logits[:, min(1, logits.shape[1] - 1)].log_softmax(dim=1)
    ratios = first - log_sum_exp_without(second)  # log p_1(b) / (1 - p_2(b))
    return torch.logaddexp(first, second + log_sum_exp_without(ratios)).clamp(max=0)


def log_sum_exp_without(values: Tensor) -> Tensor:
    """log of the sum of e^x over all others, for each: (B, N) -> (B, N), N at least 2."""
    largest = values.argmax(dim=1, keepdim=True)
    share = values.softmax(dim=1).scatter(1, largest, 0.0)  # nothing else is more than half: no difference cancels
    result = values.logsumexp(dim=1, keepdim=True) + torch.log1p(-share)
    return result.scatter(1, largest, values.scatter(1, largest, -torch.inf).logsumexp(dim=1, keepdim=True))


def draw_by_draw(logits: Tensor, num_candidates: int, heads: int) -> Tensor:
    """log pi with so many heads, ca-poisson's where the draws cannot be followed: (B, M, N) -> (B, N)."""
    done, is_sound = races(logits, num_candidates, heads)
    everything = torch.arange(logits.shape[2], device=logits.device).expand(len(logits), -1)
    log_pi = log_inclusion(done, everything)
    if not is_sound.all():
        log_pi[~is_sound] = log_inclusion_probabilities(logits[~is_sound], num_candidates)
    return log_pi
