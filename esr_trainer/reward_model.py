"""A reward model: the expected reward of an item in a context, fitted to shown interactions by regression.

It stands in for users (logged_interactions.py) and ranks like them (learned_ranker.py).
Axes: R interactions, C contexts, N items, B batch, K items per context, D embedding dimension.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from esr_trainer.command_line import Options

DIMENSION = 32
PENALTY = 0.03
"""Weight of the mean squared length of a pair's embeddings, beside a squared error in units of the rewards' variance.
Tried on KuaiRec's real sample and on the simulator: 0 overfits, 0.1 forgets everything but the biases."""
LEARNING_RATE = 0.01
STEPS_PER_EPOCH = 50
"""At least, so that a small log is learned in as few epochs as a large one."""
MAX_BATCH = 8192
MAX_EPOCHS = 50
PATIENCE = 2
"""Epochs without a new lowest held-out error after which fitting ends."""
IMPROVEMENT = 0.002
"""How much lower, as a part of it, a new lowest error is."""
HELD_OUT = 0.1
"""The part of the interactions that decides when to stop, and that the errors are of."""


class Interactions(NamedTuple):
    """What was shown and what it brought."""

    contexts: Tensor
    """Rows, (R,) int64."""
    items: Tensor
    """Rows, (R,) int64."""
    rewards: Tensor
    """(R,) float32."""
    weights: Tensor
    """How much each counts, (R,) float32, of mean 1."""

    def take(self, rows: Tensor) -> "Interactions":
        """Some of them."""
        return Interactions(*(values[rows] for values in self))


class HeldOutErrors(Options):
    """Mean squared errors on interactions that nothing was fitted to, weighted as those are."""

    model: float
    """Of the model."""
    popularity: float
    """Of each item's mean reward."""
    constant: float
    """Of the mean reward."""

    def __str__(self) -> str:
        return (
            f"held-out mean squared error {self.model:.4f} "
            f"(each item's mean: {self.popularity:.4f}, one constant: {self.constant:.4f})"
        )


LINKS: Mapping[str, Callable[[Tensor], Tensor]] = {"identity": lambda x: x, "softplus": nn.functional.softplus}
"""From the real line to rewards: any, or those that are never negative."""

Link = Literal["identity", "softplus"]


class RewardModel(nn.Module):
    """q(x, a) = scale x link( level + b_x + b_a + <u_x, v_a> ); plain tensors only, rows in, scores out."""

    level: Tensor
    scale: Tensor

    def __init__(self, num_contexts: int, num_items: int, link: Link) -> None:
        super().__init__()
        self.link: Link = link
        self.contexts = nn.Parameter(torch.zeros(num_contexts, DIMENSION + 1))  # u_x, then b_x
        self.items = nn.Parameter(torch.zeros(num_items, DIMENSION + 1))  # v_a, then b_a
        self.level = nn.Parameter(torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def initialise(self, interactions: Interactions, generator: torch.Generator) -> None:
        """Start at the mean reward everywhere, with small random embeddings."""
        rewards = interactions.rewards.double()
        spread = float(rewards.std(correction=0))
        self.scale.fill_(spread if spread > 0 else 1.0)
        mean = weighted_mean(interactions.rewards, interactions.weights) / float(self.scale)
        with torch.no_grad():
            for table in (self.contexts, self.items):
                table[:, :DIMENSION].normal_(0, 0.1, generator=generator)
            # a mean of 0 would need a level of minus infinity; it is learned from here
            self.level.fill_(math.log(math.expm1(max(mean, 1e-3))) if self.link == "softplus" else mean)

    def forward(self, contexts: Tensor, items: Tensor) -> Tensor:
        """Expected rewards: rows (B,), (B, K) -> (B, K)."""
        return self.of_embeddings(self.contexts[contexts], self.items[items])

    def of_embeddings(self, context: Tensor, item: Tensor) -> Tensor:
        """Expected rewards: (B, D + 1), (B, K, D + 1) -> (B, K)."""
        match = (item[..., :DIMENSION] @ context[:, :DIMENSION, None])[..., 0]
        return self.scale * LINKS[self.link](self.level + context[:, DIMENSION:] + item[..., DIMENSION] + match)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The expected reward of every item in every context, (C, N)."""
        match = self.contexts[:, :DIMENSION] @ self.items[:, :DIMENSION].T
        return self.scale * LINKS[self.link](
            match.add_(self.contexts[:, DIMENSION:]).add_(self.items[:, DIMENSION]).add_(self.level)
        )


def fit(
    interactions: Interactions, num_contexts: int, num_items: int, seed: int, title: str
) -> tuple[RewardModel, HeldOutErrors]:
    """Fit a reward model by weighted least squares; a held-out tenth decides when to stop.

    Args:
        interactions: at least two; where no reward is negative, no prediction is.
        num_contexts: C.
        num_items: N.
        seed: decides the start, the held-out part and the order.
        title: what the progress bar on stderr says.

    Returns:
        The model of the epoch with the lowest held-out error, and its errors.
    """
    from rich.console import Console
    from rich.progress import track

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(interactions.rewards), generator=generator)
    count = max(1, round(HELD_OUT * len(order)))
    held_out, shown = interactions.take(order[:count]), interactions.take(order[count:])
    model = RewardModel(num_contexts, num_items, "softplus" if bool((interactions.rewards >= 0).all()) else "identity")
    model.initialise(shown, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    best, best_state, since_best = math.inf, model.state_dict(), 0
    for _ in track(range(MAX_EPOCHS), title, console=Console(stderr=True), transient=True):
        fit_epoch(model, optimizer, shown, generator)
        error = model_error(model, held_out)
        if error < (1 - IMPROVEMENT) * best:
            best, since_best = error, 0
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        else:
            since_best += 1
        if since_best == PATIENCE:
            break
    model.load_state_dict(best_state)
    popularity = item_means(shown, num_items)[held_out.items]
    constant = weighted_mean(shown.rewards, shown.weights)
    errors = HeldOutErrors(
        model=best,
        popularity=weighted_mean((held_out.rewards - popularity).square(), held_out.weights),
        constant=weighted_mean((held_out.rewards - constant).square(), held_out.weights),
    )
    return model, errors


def fit_epoch(
    model: RewardModel, optimizer: torch.optim.Optimizer, shown: Interactions, generator: torch.Generator
) -> None:
    """One pass over the interactions in a drawn order."""
    batch = min(MAX_BATCH, 1 + len(shown.rewards) // STEPS_PER_EPOCH)
    for rows in torch.split(torch.randperm(len(shown.rewards), generator=generator), batch):
        contexts, items, rewards, weights = shown.take(rows)
        context = nn.functional.embedding(contexts, model.contexts)
        item = nn.functional.embedding(items, model.items)
        error = (model.of_embeddings(context, item[:, None])[:, 0] - rewards) / model.scale
        length = context[:, :DIMENSION].square().sum(dim=1) + item[:, :DIMENSION].square().sum(dim=1)
        loss = (weights * (error.square() + PENALTY * length)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def model_error(model: RewardModel, held_out: Interactions) -> float:
    """Weighted mean squared error."""
    with torch.no_grad():
        predicted = model(held_out.contexts, held_out.items[:, None])[:, 0]
    return weighted_mean((predicted - held_out.rewards).square(), held_out.weights)


def item_means(shown: Interactions, num_items: int) -> Tensor:
    """Each item's mean reward, (N,); the mean of all where it was never shown."""
    total = torch.zeros(num_items).index_add_(0, shown.items, shown.weights * shown.rewards)
    weight = torch.zeros(num_items).index_add_(0, shown.items, shown.weights)
    return torch.where(weight > 0, total / weight, weighted_mean(shown.rewards, shown.weights))


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """sum w v / sum w, in float64."""
    return float((weights.double() * values.double()).sum() / weights.double().sum())


class Description(Options):
    """What a saved model's header says of it."""

    schema_version: Literal[1] = 1
    """Layout of the file."""
    link: Link
    """Name in LINKS."""
    context_ids: tuple[str, ...]
    """The data's own ids, C."""
    item_ids: tuple[str, ...]
    """The data's own ids, N."""
    num_interactions: int
    """R, the held-out ones included."""
    errors: HeldOutErrors
    """On the held-out ones."""


def to_bytes(model: RewardModel, description: Description) -> bytes:
    """The content of a safetensors file; the description is in its header."""
    return save(model.state_dict(), {"description": description.model_dump_json()})


def from_bytes(content: bytes) -> tuple[RewardModel, Description]:
    """Read what `to_bytes` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        description = Description.model_validate_json(header["__metadata__"]["description"])
        model = RewardModel(len(description.context_ids), len(description.item_ids), description.link)
        model.load_state_dict(load(content))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError("it holds no reward model") from error
    return model, description
