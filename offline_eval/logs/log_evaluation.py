"""Judge checkpoints from a log with propensities: estimates, paired differences, overlap and a verdict for each.

The log is read page by page, twice where a model is fitted to it, and only sums are kept of it.
Axis: R rounds.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer.command_line import UsageError
from esr_trainer.config import SlotWeightsName
from esr_trainer.feedback_log import summary
from offline_eval.intervals import CONFIDENCE, INTERVALS, Estimate
from offline_eval.logs.diagnostics import (
    Calibration,
    Decile,
    Overlap,
    Running,
    gates,
    inclusion_deciles,
    inverse_sums,
    overlap,
)
from offline_eval.logs.fitted_picks import (
    KEPT,
    NEEDS_THE_LOGGED,
    OF_BOTH_STAGES,
    FittedLsr,
    PickedSlots,
    check_logged_by,
    fit_lsr,
    has_logged,
)
from offline_eval.logs.log_options import IntervalName, LogOptions
from offline_eval.logs.log_reader import LogKind, kind_of, read_rounds
from offline_eval.logs.logged_reward_model import FittedRewards, fit_rewards
from offline_eval.logs.logged_rounds import LoggedRounds
from offline_eval.logs.logged_tables import TABLES
from offline_eval.logs.lsr_choices import Fit
from offline_eval.logs.ope_estimators import MODELLED, OPE_ESTIMATORS, Limits, OpeEstimatorName, mean_of
from offline_eval.logs.target_policies import TargetPolicy, Weigher, open_policy
from offline_eval.logs.term_sums import TermSums
from offline_eval.logs.weighed_rounds import WeighedRounds, weight_of
from offline_eval.verdict import Verdict, corrected_confidence, judge

LOGGED_POLICY = "logged policy"
"""The baseline's name where none is given: what earned the log's own rewards."""

PICKABLE = 5_000_000
"""Contexts times items up to which the LSR is fitted where no estimators are named: beyond, it takes many minutes."""

OF_KIND: Mapping[LogKind, tuple[OpeEstimatorName, ...]] = {
    "feedback": ("sn-inclusion", "inclusion", "clipped-inclusion", "sn-candidate-set", "candidate-set"),
    "interactions": ("snips", "ips", "clipped-ips", "replay"),
    "open-bandit": ("snips", "ips", "clipped-ips", "replay"),
    "slates": ("snips", "sips", "rips"),
    "marginal-slates": ("snips", "sips", "rips", "iips", "pseudo-inverse"),
}
"""Estimators of each kind of log where none are named; the first decides."""


class LogQuestion(NamedTuple):
    """What is asked of a log."""

    log: str
    """A feedback log (SQLite, PostgreSQL, Parquet), Open Bandit's CSV, or a CSV or Parquet of items or of slates."""
    margin: float = 0.0
    """Least gain that is worth a promotion, in the reward's unit."""
    slot_weights: SlotWeightsName = "sum"
    """How much a slot's reward counts."""
    options: LogOptions = LogOptions()


class Estimated(NamedTuple):
    """One estimator's findings on one candidate."""

    estimator: OpeEstimatorName
    value: Estimate
    difference: Estimate
    """To the baseline, paired on the same rounds, at the evaluation's confidence."""
    overlap: Overlap | None
    """Of its weights; None where it has none."""


class JudgedByLog(NamedTuple):
    """One candidate's result."""

    name: str
    estimated: tuple[Estimated, ...]
    """The first decides."""
    verdict: Verdict


class LogEvaluation(NamedTuple):
    """What a log says of the candidates."""

    log: str
    kind: LogKind
    num_rounds: int
    """R."""
    logged_value: Estimate
    """Mean reward of a round as logged."""
    baseline: str
    interval: IntervalName
    confidence: float
    """Of the differences' intervals: corrected for the number of candidates."""
    calibration: Calibration | None
    """Of the logged inclusion propensities, against the baseline's catalogue, else the first candidate's."""
    lsr: Fit | None
    """Of the model of the log's LSR, where one was fitted."""
    judged: tuple[JudgedByLog, ...]


class Book:
    """What is added up for one candidate."""

    def __init__(self, policy: TargetPolicy, names: Sequence[OpeEstimatorName]) -> None:
        self.weigher = Weigher(policy)
        self.sums = {name: TermSums() for name in names}
        self.weights = {weight: Running() for name in names if (weight := OPE_ESTIMATORS[name].weight)}

    def add(self, rounds: WeighedRounds, baseline: WeighedRounds | None, limits: Limits) -> None:
        """Add a page's rounds, weighed for the candidate and for the baseline; None for the policy that logged."""
        logged = mean_of(rounds.rewards.sum(axis=1))
        for name, sums in self.sums.items():
            terms = OPE_ESTIMATORS[name].terms
            sums.add(terms(rounds, limits), terms(baseline, limits) if baseline else logged)
        for weight, running in self.weights.items():
            running.add(weight_of(rounds, weight))


class Fitted(NamedTuple):
    """Models that were fitted to the log, where the estimators need them."""

    rewards: FittedRewards | None
    lsr: FittedLsr | None


class LogReading:
    """What has been read of a log so far."""

    def __init__(
        self,
        policies: Sequence[TargetPolicy],
        baseline: TargetPolicy | None,
        names: Sequence[OpeEstimatorName],
        fitted: Fitted,
        question: LogQuestion,
    ) -> None:
        self.question, self.rewards, self.options = question, fitted.rewards, question.options
        self.books = [Book(policy, names) for policy in policies]
        self.baseline = Weigher(baseline) if baseline else None
        weighers = [book.weigher for book in self.books] + ([self.baseline] if self.baseline else [])
        self.picked = {weigher: PickedSlots(weigher, fitted.lsr) for weigher in weighers} if fitted.lsr else {}
        self.logged, self.inverse_sums = TermSums(), Running()
        self.deciles: tuple[Decile, ...] = ()
        self.least, self.most = self.options.reward_range or (0.0, 0.0)

    def add(self, page: LoggedRounds) -> None:
        """Weigh a page for every policy, and add it up.

        Raises:
            UsageError: the log does not tell what an estimator needs.
        """
        baseline = self.weighed(page, self.baseline) if self.baseline else None
        if self.baseline and baseline and self.picked:
            check_logged_by(self.baseline.policy.name, baseline)
            page = page._replace(log_marginals=self.picked[self.baseline].log_chance(page))
            baseline = baseline._replace(log_marginal_ratios=np.zeros_like(page.rewards))
        if self.baseline and baseline and not self.logged.num_rounds and has_logged(baseline):
            self.deciles = tuple(inclusion_deciles(*self.baseline.inclusion_of_all(page)))
        for book in self.books:
            rounds = self.weighed(page, book.weigher)
            for name in book.sums:
                check_needs(name, rounds)
            book.add(rounds, baseline, self.options.limits)
        total = rounds.rewards.sum(axis=1)
        self.logged.add(mean_of(total), mean_of(total))
        if self.options.reward_range is None:
            self.least, self.most = min(self.least, float(total.min())), max(self.most, float(total.max()))
        if page.inclusion is not None:
            self.inverse_sums.add(inverse_sums(page.inclusion))

    def weighed(self, page: LoggedRounds, weigher: Weigher) -> WeighedRounds:
        """A page for one policy, with what the fitted models say of it."""
        rounds = weigher.weigh(page, self.question.slot_weights)
        if page.log_marginals is not None and weigher in self.picked:
            rounds = self.picked[weigher].weigh(rounds, page)
        if self.rewards is None:
            return rounds
        numbers = self.logged.num_rounds + np.arange(len(page.contexts))
        return self.rewards.predict(rounds, page, numbers, weigher)

    def estimated(self, book: Book, name: OpeEstimatorName) -> Estimated:
        """An estimator's findings.

        Raises:
            UsageError: the interval needs a bound that is not known.
        """
        estimator, sums = OPE_ESTIMATORS[name], book.sums[name]
        interval = INTERVALS[self.options.interval]
        confidence = corrected_confidence(len(self.books))
        reward_range = max(self.most, 0.0) - min(self.least, 0.0)
        spread = reward_range * estimator.reach(self.options.limits, self.options.largest_weight or math.nan)
        if self.options.interval == "empirical-bernstein" and math.isnan(spread):
            raise UsageError(f"interval (empirical-bernstein): {name} needs largest_weight, which the log cannot tell")
        value, difference = sums.value(spread), sums.difference(spread, spread if self.baseline else reward_range)
        weights = overlap(estimator.weight, book.weights[estimator.weight]) if estimator.weight else None
        return Estimated(name, interval(value, CONFIDENCE), interval(difference, confidence), weights)

    def judged(self, book: Book, calibration: Calibration | None) -> JudgedByLog:
        """A candidate's result."""
        estimated = tuple(self.estimated(book, name) for name in book.sums)
        decisive = estimated[0]
        assert decisive.overlap is not None
        met = gates(decisive.overlap, calibration)
        return JudgedByLog(book.weigher.policy.name, estimated, judge(decisive.difference, met, self.question.margin))


def evaluate_log(question: LogQuestion, candidates: Sequence[Path], baseline: Path | None = None) -> LogEvaluation:
    """Judge checkpoints or bundles by the rounds that another policy logged.

    Args:
        question: the log, and how it is judged.
        candidates: run, checkpoint or bundle directories.
        baseline: the same; None for the mean that the logged policy earned.

    Raises:
        UsageError: the log, or a candidate, cannot be read or used; one line says which.
    """
    other = open_policy(baseline) if baseline else None
    return evaluate(question, [open_policy(path) for path in candidates], other)


def evaluate(
    question: LogQuestion, policies: Sequence[TargetPolicy], baseline: TargetPolicy | None = None
) -> LogEvaluation:
    """`evaluate_log` of policies that are open."""
    log, options = question.log, question.options
    kind = kind_of(log)
    named = tuple(dict.fromkeys(options.estimators))
    lsr = lsr_of(question, baseline, named) if kind == "feedback" else None
    names = named or ((*OF_BOTH_STAGES, *OF_KIND[kind]) if lsr else OF_KIND[kind])
    if OPE_ESTIMATORS[names[0]].weight is None:
        raise UsageError(
            f"estimators ({names[0]}) has no weights whose overlap a verdict could check; name another first"
        )
    everyone = [*policies, baseline] if baseline else list(policies)
    is_modelled = any(set(MODELLED) & set(OPE_ESTIMATORS[name].needs) for name in names)
    fitted = Fitted(
        rewards=fit_rewards(log, everyone) if is_modelled and kind in TABLES else None,
        lsr=lsr,
    )
    reading = LogReading(policies, baseline, names, fitted, question)
    for page in read_rounds(log, options.greedy_rounds):
        reading.add(page)
    calibration = None
    if reading.inverse_sums.count:
        num_items = len((baseline or policies[0]).item_ids)
        calibration = Calibration(num_items, reading.inverse_sums.interval(), reading.deciles)
    return LogEvaluation(
        log=log,
        kind=kind,
        num_rounds=reading.logged.num_rounds,
        logged_value=INTERVALS["t"](reading.logged.value(), CONFIDENCE),
        baseline=baseline.name if baseline else LOGGED_POLICY,
        interval=options.interval,
        confidence=corrected_confidence(len(policies)),
        calibration=calibration,
        lsr=lsr.fit if lsr else None,
        judged=tuple(reading.judged(book, calibration) for book in reading.books),
    )


def lsr_of(question: LogQuestion, baseline: TargetPolicy | None, named: Sequence[OpeEstimatorName]) -> FittedLsr | None:
    """The LSR of a feedback log; None where no estimator asks for it, or none was named and it cannot be had soon.

    Raises:
        UsageError: an estimator asks for it, and it is not known who drew the candidates.
    """
    is_asked = bool(set(OF_BOTH_STAGES) & set(named))
    if named and not is_asked:
        return None
    if baseline is None:
        if is_asked:
            raise UsageError(f"log: {NEEDS_THE_LOGGED}: name it with --baseline")
        return None
    if not is_asked and len(baseline.context_ids) * len(baseline.item_ids) > PICKABLE:
        return None
    num_rounds = sum(version.sampled for version in summary(question.log))
    try:
        lsr = fit_lsr(question.log, question.options.greedy_rounds, Weigher(baseline), max(1, num_rounds))
    except UsageError:
        if is_asked:
            raise
        return None
    return lsr if is_asked or lsr.nbytes <= KEPT else None


def check_needs(name: OpeEstimatorName, rounds: WeighedRounds) -> None:
    """Raise a UsageError that names what an estimator needs and the log does not tell."""
    for field in OPE_ESTIMATORS[name].needs:
        if getattr(rounds, field) is None:
            raise UsageError(f"estimator ({name}) needs {field.replace('_', ' ')}, which this log does not tell")
