"""The training loop over a whole catalogue whose logits are never stored, by kernels for CUDA.

1. One pass over the item embeddings draws the candidates and finds the log-normalisers.
2. The LSR orders them and shows L; the users respond.
3. Sums over the catalogue, and the candidates' own logits, stand for it in the log-probability; for `ca-poisson` a few
   more passes find the stopping times.
4. The gradient goes through the catalogue once for the contexts' tables and once for the items'.

Axes: B batch, M experts, N items, K candidates, D embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from esr_trainer.config import SUMS_TO_K
from esr_trainer.interaction import show
from esr_trainer.policy_value import replay
from esr_trainer.training import Place, Played, Trainer, played_together


@dataclass(kw_only=True)
class FusedTrainer(Trainer):
    """A run that takes the steps of `Trainer`, of other draws, and stores no (B, M, N)."""

    @classmethod
    def play(cls, learners: Sequence[Self]) -> Played:
        """The rounds of R runs, one after the other: each fills the device."""
        return played_together([learner.play_alone() for learner in learners])

    def play_alone(self) -> Played:
        """One round."""
        from esr_trainer.fused_catalogue import draw, summed  # Triton is an extra

        contexts = self.draw_contexts()
        queries, items = self.queries(contexts), self.policy.item_tower()
        scanned = draw(queries, items, self.config.candidates, self.generator)
        round_ = show(self.world, self.system, contexts, scanned.candidates, self.generator)
        logits = summed(queries, items, scanned, with_times=self.config.estimator in SUMS_TO_K)
        columns = torch.arange(self.config.candidates, device=contexts.device).expand_as(scanned.candidates)
        return Played(contexts, logits, round_, Place(round_.positions, columns, None))

    def value(self) -> dict[str, float]:
        """The policy value on all contexts."""
        with torch.no_grad():
            return {self.criterion: float(replay(self.world, self.system, self.greedy).mean())}

    def greedy(self, contexts: Tensor) -> Tensor:
        """The greedy candidates: (B,) -> (B, K)."""
        from esr_trainer.fused_catalogue import draw

        return draw(self.queries(contexts), self.policy.item_tower(), self.config.candidates, None).candidates

    def queries(self, contexts: Tensor) -> Tensor:
        """What the items are multiplied with: (B,) -> (B, M, D)."""
        embeddings: Tensor = self.policy.context_tower(contexts)
        return embeddings / self.policy.temperature
