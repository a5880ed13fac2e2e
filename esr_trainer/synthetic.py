"""The synthetic world of arXiv:2605.26385 §4.1, with its own seed or from a file of the published arrays."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from esr_trainer.pairwise_world import PairwiseWorld
from esr_trainer.world import World, has_matrices

ARRAYS = (
    "contexts",
    "context_reactiveness_coef",
    "context_reactiveness_bias",
    "items",
    "item_reactiveness_coef",
    "item_reactiveness_bias",
    "latent",
    "projection",
    "reward_std_coefs",
    "reward_std_bias",
    "reward_scale",
)
"""x (C, D), c_x (D), its bias, a (N, D), c_a (D), its bias, M0, Mz and C (D, D), C's bias, the score's scale."""


def synthetic_world(num_contexts: int, num_items: int, seed: int = 0, dimension: int = 10) -> World:
    """Draw a synthetic world as `pairwise_synthetic_world`, by its matrices where they fit."""
    world = pairwise_synthetic_world(num_contexts, num_items, seed, dimension)
    return world.dense() if has_matrices(num_contexts, num_items) else world


def pairwise_synthetic_world(num_contexts: int, num_items: int, seed: int = 0, dimension: int = 10) -> PairwiseWorld:
    """Draw a synthetic world; every array has draws of its own.

    x, a ~ U[-1, 1]^D scaled to unit norm; M0, Mz Gaussian with unit-norm last axis; c_x, c_a, C ~ N(0, 1); biases 3, 3
    and 1; scale 10.

    Args:
        num_contexts: C.
        num_items: N.
        seed: decides every draw.
        dimension: D.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform_directions(count: int) -> Tensor:
        return torch.nn.functional.normalize(torch.rand((count, dimension), generator=generator) * 2 - 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    arrays = {
        "contexts": uniform_directions(num_contexts),
        "context_reactiveness_coef": normal(dimension),
        "context_reactiveness_bias": torch.tensor(3.0),
        "items": uniform_directions(num_items),
        "item_reactiveness_coef": normal(dimension),
        "item_reactiveness_bias": torch.tensor(3.0),
        "latent": torch.nn.functional.normalize(normal(dimension, dimension), dim=-1),
        "projection": torch.nn.functional.normalize(normal(dimension, dimension), dim=-1),
        "reward_std_coefs": normal(dimension, dimension),
        "reward_std_bias": torch.tensor(1.0),
        "reward_scale": torch.tensor(10.0),
    }
    description = f"synthetic world of arXiv:2605.26385 §4.1, world seed {seed}"
    source = f"generated, seed {seed}, {num_contexts} x {num_items} x {dimension}"
    return pairwise_world_of(arrays, description, source)


def published_world(arrays: Mapping[str, np.ndarray], source: str) -> World:
    """The world of published arrays; keys as in `ARRAYS`."""
    tensors = {name: torch.from_numpy(np.array(arrays[name], dtype=np.float32)) for name in ARRAYS}
    return world_of(tensors, "synthetic world from the arrays of a file", source)


def world_of(arrays: Mapping[str, Tensor], description: str, source: str) -> World:
    """Work out the scores and rewards of all pairs from the arrays."""
    return pairwise_world_of(arrays, description, source).dense()


def pairwise_world_of(arrays: Mapping[str, Tensor], description: str, source: str) -> PairwiseWorld:
    """The world of the arrays, its scores and rewards not yet worked out."""
    num_contexts, num_items = len(arrays["contexts"]), len(arrays["items"])
    description = f"{description}: {num_contexts} contexts x {num_items} items"
    return PairwiseWorld("synthetic", description, (num_contexts, num_items), SyntheticLaw(arrays), source)


class SyntheticLaw:
    """Scores and rewards of pairs (arXiv:2605.26385 §4.1, DESIGN §5).

    eta = sqrt( sigmoid(a.c_a + 3) sigmoid(x.c_x + 3) ), q = 10 x^T [(1 - eta) M0 + eta Mz] a,
    reward ~ Normal( softplus(q) + 1, sigmoid(x^T C a + 1) ). Items are each context's own, (B, J), or the same for all,
    (J,).
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        """Keep the arrays, keys as in `ARRAYS`."""
        self.arrays = arrays

    def scores(self, contexts: Tensor, items: Tensor) -> Tensor:
        """q, (B, J)."""
        arrays, x, a = self.arrays, self.arrays["contexts"][contexts], self.arrays["items"][items]
        x_reactiveness = torch.sigmoid(x @ arrays["context_reactiveness_coef"] + arrays["context_reactiveness_bias"])
        a_reactiveness = torch.sigmoid(a @ arrays["item_reactiveness_coef"] + arrays["item_reactiveness_bias"])
        eta = (x_reactiveness[:, None] * a_reactiveness).sqrt()
        latent, projection = (products(x @ arrays[name], a) for name in ("latent", "projection"))
        return arrays["reward_scale"] * ((1 - eta) * latent + eta * projection)

    def expected_rewards(self, contexts: Tensor, items: Tensor) -> Tensor:
        """softplus(q) + 1, (B, J)."""
        return torch.nn.functional.softplus(self.scores(contexts, items)) + 1

    def reward_stds(self, contexts: Tensor, items: Tensor) -> Tensor:
        """sigmoid(x^T C a + 1), (B, J)."""
        x, a = self.arrays["contexts"][contexts], self.arrays["items"][items]
        return torch.sigmoid(products(x @ self.arrays["reward_std_coefs"], a) + self.arrays["reward_std_bias"])


def products(x: Tensor, a: Tensor) -> Tensor:
    """Inner products, (B, D) and (J, D) or (B, J, D) -> (B, J)."""
    return x @ a.T if a.dim() == 2 else torch.bmm(a, x[:, :, None])[:, :, 0]
