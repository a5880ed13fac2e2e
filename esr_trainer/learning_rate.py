"""The LSR-propensity learning-rate scale: how much larger a step may be where the LSR shows its favourite less often.

Axes: B batch, K candidates, L slots.
"""

import torch

from esr_trainer.config import TrainConfig, scaled_learning_rate
from esr_trainer.policy_value import CHUNK, System, uniform_candidates
from esr_trainer.world import World


def learning_rate(config: TrainConfig, world: World, system: System) -> float:
    """The settings' learning rate, scaled if they say so."""
    if config.learning_rate_scale == "none":
        return config.learning_rate
    return scaled_learning_rate(
        config.learning_rate, greedy_propensity(world, system, torch.Generator(world.device).manual_seed(0))
    )


def greedy_propensity(world: World, system: System, generator: torch.Generator) -> float:
    """How probably the LSR shows its own top candidate first: the mean over contexts, each with K uniform candidates.

    Args:
        world: C contexts and N items.
        system: LSR and K.
        generator: the source of the candidates.

    Returns:
        1 for a fixed order, 1/K for the uniform one.
    """
    total = 0.0
    for start in range(0, world.num_contexts, CHUNK):
        contexts = torch.arange(start, min(start + CHUNK, world.num_contexts), device=world.device)
        candidates = uniform_candidates(world, system, len(contexts), generator)
        scores = system.scores(contexts, candidates)
        first = system.ranker.propensities(scores, system.ranker.rank(scores, 1, generator))[:, 0]  # (B, K)
        total += float(first.amax(dim=1).sum())
    return total / world.num_contexts
