"""The ESR's policy: Plackett-Luce over a mixture of experts, drawn by Gumbel top-k, and its greedy form.

Axes: B batch, M experts, N items, K positions.
"""

import torch
from torch import Tensor

from esr_trainer.quotas import quotas
from esr_trainer.shards import Logits, ShardedLogits


def gumbel(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, -log(-log U).

    A uniform draw can be exactly 0 and its noise -inf, the key of an item that is already taken; the smallest step of
    the generator, 2^-24, takes its place.
    """
    noise = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
    return noise.clamp_(min=2.0**-24).log_().neg_().log_().neg_()


def greedy_candidates(logits: Logits, num_candidates: int) -> Tensor:
    """Expert by expert, the best items that no earlier expert took (DESIGN §3).

    Args:
        logits: (B, M, N), finite; left as it is.
        num_candidates: K, at most N.

    Returns:
        Items, (B, K), in expert order and by falling logit within an expert.
    """
    if isinstance(logits, ShardedLogits):
        return logits.shards.greedy(logits.here, num_candidates)
    num_experts = logits.shape[1]
    if num_experts == 1:
        return logits[:, 0].topk(num_candidates).indices
    picks: list[Tensor] = []
    for expert, quota in enumerate(quotas(num_candidates, num_experts)):
        keys = logits[:, expert]
        if picks:
            keys = keys.scatter(1, torch.cat(picks, dim=1), -torch.inf)
        picks.append(keys.topk(quota).indices)
    return torch.cat(picks, dim=1)


def sample_candidates(logits: Logits, num_candidates: int, generator: torch.Generator) -> Tensor:
    """Draw ordered candidates from the mixture of Plackett-Luce: greedy on logits + Gumbel noise (Kool et al. 2019).

    One draw of noise per (context, expert, item), so experts explore independently.

    Args:
        logits: (B, M, N), finite.
        num_candidates: K, at most N.
        generator: the source of the noise, on the logits' device.

    Returns:
        Items, (B, K), in the order of the positions.
    """
    logits = logits.detach()
    if isinstance(logits, ShardedLogits):
        noise = logits.shards.gumbel(logits.here, generator)
        return logits.shards.greedy(noise.add_(logits.here), num_candidates)
    noise = gumbel(logits.shape, logits, generator)
    return greedy_candidates(noise.add_(logits), num_candidates)
