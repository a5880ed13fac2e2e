"""The learned late-stage ranker: a reward model fitted to feedback that a uniform policy logged.

Axes: R interactions, B batch, K candidates.
"""

import torch
from torch import Tensor

from esr_trainer import reward_model
from esr_trainer.command_line import UsageError, note
from esr_trainer.reward_model import Description, Interactions
from esr_trainer.world import Catalogue, World


def logged_feedback(world: World, count: int, generator: torch.Generator) -> Interactions:
    """Show random items to random users and log what they do: every pair is as likely, so no item goes unseen."""
    contexts = torch.randint(world.num_contexts, (count,), generator=generator)
    items = torch.randint(world.num_items, (count, 1), generator=generator)
    rewards = world.draw_rewards(contexts, items, generator)
    return Interactions(contexts, items[:, 0], rewards[:, 0], torch.ones(count))


def fit_learned_ranker(world: World, count: int, seed: int) -> bytes:
    """Fit a ranker to `count` logged interactions; give the content of its file."""
    return fit_to_feedback(logged_feedback(world, count, torch.Generator().manual_seed(seed)), world, seed)


def fit_to_feedback(feedback: Interactions, catalogue: Catalogue, seed: int) -> bytes:
    """Fit a ranker to logged feedback; give the content of its file."""
    context_ids, item_ids, count = catalogue.context_ids, catalogue.item_ids, len(feedback.rewards)
    model, errors = reward_model.fit(feedback, len(context_ids), len(item_ids), seed, "fitting the learned LSR")
    note(f"learned LSR, fitted to {count:,} logged interactions: {errors}")
    return reward_model.to_bytes(
        model,
        Description(link=model.link, context_ids=context_ids, item_ids=item_ids, num_interactions=count, errors=errors),
    )


class LearnedRanker:
    """Scores candidates by the expected reward that a fitted model gives them."""

    def __init__(self, content: bytes, catalogue: Catalogue) -> None:
        """Open a fitted ranker; its rows are found by the catalogue's ids.

        Raises:
            UsageError: the file is something else, or does not know one of the ids.
        """
        try:
            self.model, self.description = reward_model.from_bytes(content)
        except ValueError as error:
            raise UsageError(f"lsr (ranker.safetensors): {error}") from error
        self.context_rows = rows_of("context", catalogue.context_ids, self.description.context_ids)
        self.item_rows = rows_of("item", catalogue.item_ids, self.description.item_ids)

    def __call__(self, contexts: Tensor, items: Tensor) -> Tensor:
        """Scores: (B,), (B, K) -> (B, K)."""
        with torch.no_grad():
            scores: Tensor = self.model(self.context_rows[contexts], self.item_rows[items])
        return scores


def rows_of(kind: str, ids: tuple[str, ...], known: tuple[str, ...]) -> Tensor:
    """Where each id is among the known ones."""
    row = {name: number for number, name in enumerate(known)}
    for name in ids:
        if name not in row:
            raise UsageError(f"lsr (ranker.safetensors): it was fitted without {kind} {name}")
    return torch.tensor([row[name] for name in ids])
