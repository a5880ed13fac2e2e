"""The ESR's policy: Plackett-Luce over a mixture of experts, drawn by Gumbel top-k, and its greedy form.

Axes: B batch, M experts, N items, K positions.
"""

import torch
from torch import Tensor

from esr_trainer.quotas import quotas
from esr_trainer.shards import Logits, ShardedCatalogue, in_one_piece, largest


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
    if isinstance(logits, ShardedCatalogue):
        return logits.shards.greedy(logits.here, num_candidates)
    logits, num_experts = in_one_piece(logits), logits.shape[1]
    if num_experts == 1:
        return logits[:, 0].topk(num_candidates).indices
    picks: list[Tensor] = []
    for expert, quota in enumerate(quotas(num_candidates, num_experts)):
        keys = logits[:, expert]
        if picks:
            keys = keys.scatter(1, torch.cat(picks, dim=1), -torch.inf)
        picks.append(keys.topk(quota).indices)
    return torch.cat(picks, dim=1)


def in_turn(keys: Tensor, items: Tensor, num_candidates: int) -> Tensor:
    """`greedy_candidates` of some items of each expert's own, its K best of all among them: (B, M, J) twice -> (B, K).

    Whatever earlier experts take, an expert's picks are among its K best.
    """
    picks = items.new_empty((len(items), 0))
    for expert, quota in enumerate(quotas(num_candidates, items.shape[1])):
        is_taken = (items[:, expert, :, None] == picks[:, None]).any(dim=2)
        place = largest(keys[:, expert].masked_fill(is_taken, -torch.inf), quota)
        picks = torch.cat([picks, items[:, expert].gather(1, place)], dim=1)
    return picks


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
    if isinstance(logits, ShardedCatalogue):
        noise = logits.shards.gumbel(logits.here, generator)
        return logits.shards.greedy(noise.add_(logits.here.detach()), num_candidates)
    logits = in_one_piece(logits).detach()
    noise = gumbel(logits.shape, logits, generator)
    return greedy_candidates(noise.add_(logits), num_candidates)
