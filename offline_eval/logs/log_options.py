"""How a log is judged: settings, and the names that they take. Neither torch nor scipy is loaded for them."""

from typing import Literal

from pydantic import PositiveFloat

from esr_trainer.command_line import Options
from offline_eval.logs.ope_estimators import Limits, OpeEstimatorName

IntervalName = Literal["bca", "t", "empirical-bernstein"]

GreedyRounds = Literal["refuse", "leave-out"]
"""What becomes of greedy rounds, which say nothing of any other policy: the log is refused, or the rest is taken."""


class LogOptions(Options):
    """How a log is judged."""

    estimators: tuple[OpeEstimatorName, ...] = ()
    """Off-policy estimators; the first decides. Default: those that the log allows without a reward model."""
    interval: IntervalName = "bca"
    """Intervals by bootstrap (bca), Student's t, or empirical Bernstein, which holds for any bounded reward."""
    clip: PositiveFloat = Limits().clip
    """Largest weight of the clipped estimators."""
    switch: PositiveFloat = Limits().switch
    """Largest weight that switch-dr trusts."""
    shrinkage: PositiveFloat = Limits().shrinkage
    """lambda of dros."""
    largest_weight: PositiveFloat | None = None
    """The largest weight that is possible, for empirical Bernstein on estimators that clip nothing."""
    reward_range: tuple[float, float] | None = None
    """Least and most of a round's reward, for empirical Bernstein; default what the log holds."""
    greedy_rounds: GreedyRounds = "refuse"
    """Greedy rounds of a feedback log have no support: refuse the log, or leave them out."""

    @property
    def limits(self) -> Limits:
        """Where weights are cut."""
        return Limits(self.clip, self.switch, self.shrinkage)
