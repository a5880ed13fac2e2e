"""One round of the two-stage system with its users. Axes: B batch, M experts, N items, K candidates, L slots."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.policy import sample_candidates
from esr_trainer.policy_value import System
from esr_trainer.shards import Logits
from esr_trainer.world import World


class Round(NamedTuple):
    """What was picked, shown and rewarded."""

    candidates: Tensor
    """(B, K), items in the order drawn."""
    slate: Tensor
    """(B, L), items by slot."""
    reward: Tensor
    """(B, L)."""
    positions: Tensor
    """The slate as positions among the candidates, (B, L)."""


def interact(world: World, system: System, contexts: Tensor, logits: Logits, generator: torch.Generator) -> Round:
    """Play one round.

    1. The ESR draws K candidates from its policy.
    2. The LSR orders them and shows L.
    3. The users respond to what they see.

    Args:
        world: where the users live.
        system: LSR, K and L.
        contexts: (B,).
        logits: (B, M, N).
        generator: the source of every draw.
    """
    return show(world, system, contexts, sample_candidates(logits, system.num_candidates, generator), generator)


def show(world: World, system: System, contexts: Tensor, candidates: Tensor, generator: torch.Generator) -> Round:
    """Steps 2 and 3 of a round whose candidates, (B, K), are there."""
    positions = system.ranker.rank(system.scores(contexts, candidates), system.num_slots, generator)
    slate = candidates.gather(1, positions)
    return Round(candidates, slate, world.draw_rewards(contexts, slate, generator), positions)


def side_by_side(rounds: Sequence[Round]) -> Round:
    """The rounds of several systems as one, row after row."""
    return rounds[0] if len(rounds) == 1 else Round(*map(torch.cat, zip(*rounds, strict=True)))
