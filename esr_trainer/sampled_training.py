"""The training loop over a large catalogue: a head by an index, a random rest, and only the rows that a step uses.

1. The index finds each context's head; the candidates are drawn from the law of the whole catalogue.
2. The LSR orders them and shows L; the users respond.
3. Head, candidates and a second random rest stand for the catalogue in the log-probability.
4. Their rows alone take a step.

Axes: B batch, M experts, N items, H head, K candidates, S tail, J any items, D embedding dimension.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple, Self

import faiss
import numpy as np
import torch
from torch import Tensor

from esr_trainer.catalogue_index import CatalogueIndex
from esr_trainer.catalogue_sample import Columns, columns_of, head_of, lazy_candidates
from esr_trainer.config import TrainConfig
from esr_trainer.interaction import show
from esr_trainer.lazy_rows import LAZY_OPTIMIZERS, pick, rows_of
from esr_trainer.policy import in_turn
from esr_trainer.policy_value import System, replay
from esr_trainer.towers import EarlyStageRanker, Tower
from esr_trainer.training import Place, Played, Trainer, played_together


@dataclass(kw_only=True)
class SampledTrainer(Trainer):
    """A run whose steps cost about the same whatever the size of the catalogue."""

    optimizers: ClassVar[Mapping[str, Callable[..., torch.optim.Optimizer]]] = LAZY_OPTIMIZERS
    index: CatalogueIndex = field(init=False)

    def __post_init__(self) -> None:
        """Begin with no index."""
        self.index = CatalogueIndex(self.config.index_every, self.config.seed)

    @classmethod
    def play(cls, learners: Sequence[Self]) -> Played:
        """The rounds of R runs, each over samples of its own."""
        return played_together([learner.play_alone() for learner in learners])

    def play_alone(self) -> Played:
        """One round."""
        config, num_items, draws = self.config, self.world.num_items, self.generator
        contexts = self.draw_contexts()
        queries = queries_of(partial(rows_of, self.policy.context_tower), contexts, self.policy.temperature)
        self.index.at_step(self.step, lambda: copy_of(self.policy.item_tower))
        with torch.no_grad():
            head = head_of(self.index.search(queries.detach(), min(config.head_size, num_items)))
            law = InnerProducts(self.policy.item_tower, queries)
            share = early_share(config, num_items)
            candidates = lazy_candidates(law, head, num_items, config.candidates, share, draws)
        round_ = show(self.world, self.system, contexts, candidates, draws)
        columns = columns_of(head, candidates, num_items, config.catalogue_tail, draws)
        of_candidates = columns.num_own - config.candidates + torch.arange(config.candidates).expand_as(candidates)
        place = Place(of_candidates.gather(1, round_.positions), of_candidates, columns.log_weight)
        return Played(contexts, logits_of(self.policy.item_tower, queries, columns), round_, place)

    def value(self) -> dict[str, float]:
        """The policy value on all contexts, of the exact greedy candidates."""
        values = replay(self.world, self.system, lambda contexts: best_of_all(self.policy, contexts, self.system))
        return {self.criterion: float(values.mean())}

    @property
    def own_state(self) -> Mapping[str, Tensor]:
        """The baseline, and the index."""
        return {**super().own_state, **self.index.tensors()}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """The baseline, and the index."""
        super().load_own_state(state)
        self.index.load(state)


class InnerProducts(NamedTuple):
    """The logits of a batch of contexts, as they are now."""

    embeddings: Callable[[Tensor], Tensor]
    """Of some items: (J,) -> (J, M, D)."""
    queries: Tensor
    """(B, M, D)."""

    def own(self, items: Tensor) -> Tensor:
        """Of each context's own items: (B, J) -> (B, M, J)."""
        found = self.embeddings(items.flatten())
        return products(self.queries, found.view(*items.shape, *found.shape[1:]))

    def shared(self, items: Tensor, expert: int) -> Tensor:
        """Of one expert, of the same items for all: (J,) -> (B, J)."""
        return self.queries[:, expert] @ self.embeddings(items)[:, expert].T


def products(queries: Tensor, items: Tensor) -> Tensor:
    """Logits of each context's own items: (B, M, D), (B, J, M, D) -> (B, M, J)."""
    found: Tensor = torch.einsum("bmd,bjmd->bmj", queries, items)
    return found


def early_share(config: TrainConfig, num_items: int) -> float:
    """The share of the tail that may be early in a draw."""
    return min(1.0, config.catalogue_tail / num_items)


def queries_of(rows_of: Callable[[Tensor], Tensor], contexts: Tensor, temperature: float) -> Tensor:
    """What items are multiplied by, (B, M, D), from the embeddings of distinct contexts, (U,) -> (U, M, D)."""
    visited, row = contexts.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return pick(rows_of(visited), row) / temperature


def logits_of(tower: Tower, queries: Tensor, columns: Columns) -> Tensor:
    """Logits of the columns, (B, M, H + K + S), whose gradient reaches only the items' rows that they use."""
    used, place = torch.cat([columns.own.flatten(), columns.tail]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    items = rows_of(tower, used)
    own, tail = place.tensor_split([columns.own.numel()])
    of_own = products(queries, pick(items, own.view(columns.own.shape)))
    return torch.cat([of_own, torch.einsum("bmd,smd->bms", queries, pick(items, tail))], dim=2)


def copy_of(tower: Tower) -> np.ndarray:
    """A tower's embeddings as they are now, expert by expert: (M, N, D)."""
    with torch.no_grad():
        return np.array(tower().transpose(0, 1).numpy(), dtype=np.float32, order="C", copy=True)


@torch.no_grad()
def best_of_all(policy: EarlyStageRanker, contexts: Tensor, system: System) -> Tensor:
    """The greedy candidates of some contexts, (B, K), by FAISS's exact search, which holds no (B, N)."""
    queries = policy.context_tower(contexts) / policy.temperature
    return in_turn(*nearest(queries, policy.item_tower(), system.num_candidates), system.num_candidates)


def nearest(queries: Tensor, items: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each expert's largest inner products, falling, and whose they are: (B, M, D), (N, M, D) -> (B, M, count) each."""
    found = [
        faiss.knn(queries[:, expert].numpy(), items[:, expert].numpy(), count, faiss.METRIC_INNER_PRODUCT)
        for expert in range(queries.shape[1])
    ]
    keys, best = (torch.from_numpy(np.stack(parts, axis=1)) for parts in zip(*found, strict=True))
    return keys, best
