"""Which expert owns which of the K positions (DESIGN §3), and how far draws of such quotas are followed one by one."""

LEAST_HEADS, MOST_HEADS = 6, 10
"""Items whose sets are followed exactly through the draws; each one more doubles the sets."""

WIDEST = 340.0
"""Logits of one expert that lie further apart than this do not fit float64 draw by draw."""

ROUNDING = 2e-6
"""By more than this no chance exceeds 1, and no sum K (per position), unless too few items were left for the others."""


def quotas(num_candidates: int, num_experts: int) -> list[int]:
    """Positions of each expert, in expert order: K // M, the first K mod M experts one more."""
    share, rest = divmod(num_candidates, num_experts)
    return [share + (expert < rest) for expert in range(num_experts)]


def expert_of_position(num_candidates: int, num_experts: int) -> list[int]:
    """m(k): the expert that owns each of the K positions."""
    return [expert for expert, quota in enumerate(quotas(num_candidates, num_experts)) for _ in range(quota)]


def num_heads(num_items: int, num_candidates: int, num_experts: int) -> int:
    """Heaviest items to follow exactly through all draws, two more than an expert draws, or all; 0: use ca-poisson.

    That is so for quotas above MOST_HEADS - 2, where ca-poisson tells as much, and where hardly more items than
    candidates could run out.
    """
    if num_candidates < num_items <= MOST_HEADS:
        return num_items
    heads = max(LEAST_HEADS, quotas(num_candidates, num_experts)[0] + 2)
    return heads if heads <= MOST_HEADS and 3 * num_candidates <= 2 * num_items else 0
