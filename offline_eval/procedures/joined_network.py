"""A network on the joined features of a context and an item: the ranker and the simulator of Ma et al. (WWW 2020, §5).

p(x, a) = sigmoid( w . relu( W relu( U f(x) + V f(a) + b ) + c ) + d ): the first layer of features f that are put side
by side is a sum of two, so each context's and each item's half is computed once.

Axes: R interactions, C contexts, N items, B batch, H hidden units.
"""

import math

import torch
from torch import Tensor, nn

from esr_trainer.features import Features
from esr_trainer.log_training import chunks
from esr_trainer.reward_model import Interactions
from esr_trainer.towers import Tower

HIDDEN = (32, 16)
"""Units of the two hidden layers."""
INIT_STD = 0.1
LEARNING_RATE = 0.01
HELD_OUT = 0.1
"""The part of the interactions that decides when to stop."""
BATCHES_PER_EPOCH = 20
"""At least."""
MAX_BATCH = 8192
MAX_EPOCHS = 50
PATIENCE = 2
"""Epochs without a new lowest held-out loss after which fitting ends."""
CELLS = 1 << 18
"""Pairs that are scored at a time."""


class JoinedNetwork(nn.Module):
    """Chances of a reward, from the features of contexts and items."""

    def __init__(self, contexts: Features, items: Features) -> None:
        super().__init__()
        self.context_half, self.item_half = (Tower(features, 1, HIDDEN[0]) for features in (contexts, items))
        self.bias = nn.Parameter(torch.zeros(HIDDEN[0]))
        self.second, self.last = nn.Linear(*HIDDEN), nn.Linear(HIDDEN[1], 1)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every table and every layer's weights."""
        with torch.no_grad():
            for half in (self.context_half, self.item_half):
                for table in half.parameters():
                    table.normal_(0, INIT_STD, generator=generator)
                half.clear_unused_buckets()
            for layer in (self.second, self.last):
                layer.weight.normal_(0, math.sqrt(2 / layer.in_features), generator=generator)
                layer.bias.zero_()

    def joined(self, context: Tensor, item: Tensor) -> Tensor:
        """Logits of halves that broadcast: (..., H), (..., H) -> (...)."""
        logits: Tensor = self.last(self.second((context + item + self.bias).relu()).relu())
        return logits[..., 0]

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The logit of every item in every context, (C, N)."""
        context, item = self.context_half()[:, 0], self.item_half()[:, 0]
        parts = chunks(len(context), max(1, CELLS // len(item)))
        return torch.cat([self.joined(context[rows][:, None], item) for rows in parts])


def fit(contexts: Features, items: Features, interactions: Interactions, seed: int) -> JoinedNetwork:
    """Fit by cross-entropy; a held-out tenth decides when to stop.

    Args:
        contexts: C rows.
        items: N rows.
        interactions: at least two, rewards in [0, 1].
        seed: decides the start, the held-out part and the order.

    Returns:
        The network of the epoch with the lowest held-out loss.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(interactions.rewards), generator=generator)
    count = max(1, round(HELD_OUT * len(order)))
    held_out, shown = interactions.take(order[:count]), interactions.take(order[count:])
    network = JoinedNetwork(contexts, items)
    network.initialise(generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    best, best_state, since_best = math.inf, network.state_dict(), 0
    for _ in range(MAX_EPOCHS):
        fit_epoch(network, optimizer, shown, generator)
        with torch.no_grad():
            loss = float(loss_of(network, held_out))
        since_best = 0 if loss < best else since_best + 1
        if not since_best:
            best, best_state = loss, {name: value.clone() for name, value in network.state_dict().items()}
        if since_best == PATIENCE:
            break
    network.load_state_dict(best_state)
    return network


def fit_epoch(
    network: JoinedNetwork, optimizer: torch.optim.Optimizer, shown: Interactions, generator: torch.Generator
) -> None:
    """One pass over the interactions in a drawn order."""
    batch = min(MAX_BATCH, 1 + len(shown.rewards) // BATCHES_PER_EPOCH)
    for rows in torch.split(torch.randperm(len(shown.rewards), generator=generator), batch):
        optimizer.zero_grad()
        loss_of(network, shown.take(rows)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def loss_of(network: JoinedNetwork, batch: Interactions) -> Tensor:
    """Weighted cross-entropy: ()."""
    context, item = network.context_half(batch.contexts)[:, 0], network.item_half(batch.items)[:, 0]
    logits = network.joined(context, item)
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.rewards, batch.weights)
