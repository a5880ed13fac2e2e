"""Which expert owns which of the K positions (DESIGN §3)."""


def quotas(num_candidates: int, num_experts: int) -> list[int]:
    """Positions of each expert, in expert order: K // M, the first K mod M experts one more."""
    share, rest = divmod(num_candidates, num_experts)
    return [share + (expert < rest) for expert in range(num_experts)]


def expert_of_position(num_candidates: int, num_experts: int) -> list[int]:
    """m(k): the expert that owns each of the K positions."""
    return [expert for expert, quota in enumerate(quotas(num_candidates, num_experts)) for _ in range(quota)]
