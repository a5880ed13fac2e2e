"""A feedback log as a server leaves it: drawn from a bundle, shown by an LSR, rewarded by the run's world."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from esr_trainer.feedback_log import Feedback, FeedbackLog, Shown
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.world import World
from serving import Query, Retriever

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def served(
    bundles: Path, world: World, num_rounds: int, num_slots: int = 2, lsr: str = "uniform", is_told: bool = False
) -> list[Feedback]:
    """Records of drawn rounds, contexts drawn uniformly; the LSR tells its own probabilities, or does not."""
    retriever, generator = Retriever.open(bundles), np.random.default_rng(0)
    rewards, deviations = world.expected_reward.numpy(), world.reward_std.numpy()
    records = []
    for number in range(num_rounds):
        context = int(generator.integers(world.num_contexts))
        answer = retriever.retrieve(Query(str(context), seed=number))
        drawn = torch.tensor([[int(item) for item in answer.item_ids]])
        ranker, source = LATE_STAGE_RANKERS[lsr], torch.Generator().manual_seed(number)
        scores = world.scores(torch.tensor([context]), drawn)
        positions = ranker.rank(scores, num_slots, source)
        (chances,) = ranker.propensities(scores, positions).gather(2, positions[:, :, None])[..., 0].tolist()
        slate = [answer.item_ids[position] for position in positions[0]]
        rows = [int(item) for item in slate]
        shown = Shown(
            request_id=f"request-{number}",
            model_id="model",
            model_version=1,
            mode="sampled",
            context_id=str(context),
            candidates=tuple(answer.item_ids),
            inclusion_propensities=tuple(answer.inclusion_propensities),
            log_probability=answer.log_probability,
            experts=tuple(answer.experts),
        )
        earned = rewards[context, rows] + deviations[context, rows] * generator.normal(size=num_slots)
        records.append(Feedback(shown, tuple(slate), tuple(chances) if is_told else (), tuple(earned.tolist()), BEGAN))
    return records


def write(path: Path, records: list[Feedback]) -> str:
    """A log in SQLite; give its path."""
    with FeedbackLog(str(path)) as log:
        log.record(records)
    return str(path)
