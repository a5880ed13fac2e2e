"""OPE_ESTIMATORS: the value of a target policy e from rounds that another policy b logged, round by round.

Every estimator is a mean of a term, plus a ratio of two means: `control + numerator / denominator`. Self-normalised
ones have a denominator that varies; `per_round` gives terms whose mean is the estimate and whose spread is right for
the ratio too (delta method). All assume independent rounds, propensities as logged, and support: what e may do, b does
with a probability above 0.

Axes: R rounds, L slots. x context, a item, A candidates in their order, r reward, w importance weight.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from offline_eval.logs.weighed_rounds import Terms, WeighedRounds, Weight, given, weight_of


class Limits(NamedTuple):
    """Where weights are cut; in the unit of a weight, whose mean is 1."""

    clip: float = 10.0
    """`clipped-ips` and `clipped-inclusion` lower larger weights to this."""
    switch: float = 10.0
    """`switch-dr` leaves rounds of larger weights to the reward model."""
    shrinkage: float = 100.0
    """lambda of `dros`: weights much smaller than its root stay, much larger ones go to 0."""


def mean_of(numerator: np.ndarray) -> Terms:
    """A plain mean."""
    return Terms(np.zeros_like(numerator), numerator, np.ones_like(numerator))


def weights(rounds: WeighedRounds) -> np.ndarray:
    """w = prod_l pi_e(a_l | x, a_<l) / pi_b(a_l | x, a_<l), (R,); with one slot pi_e(a | x) / pi_b(a | x)."""
    return weight_of(rounds, "log_ratios")


def replay(rounds: WeighedRounds, limits: Limits) -> Terms:
    """sum 1{e does what was logged} r / sum 1{e does what was logged} (Li et al., WSDM 2011, Algorithm 2).

    The value of e without noise. Unbiased if b draws uniformly, or at least independently of the context and alike for
    all items that e would take; what was logged otherwise is thrown away.
    """
    agrees = given(rounds.agrees).astype(np.float64)
    return Terms(np.zeros_like(agrees), agrees * rounds.rewards.sum(axis=1), agrees)


def dm(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Direct method: mean sum_a pi_e(a | x) q(x, a) (e.g. Dudik et al. 2014, Statistical Science 29, Section 2).

    As good as the reward model q and biased as it is: the interval is of the contexts alone, and knows nothing of that.
    """
    return mean_of(given(rounds.predicted_value))


def ips(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Inverse propensity scoring: mean w sum_l r_l (Horvitz & Thompson 1952); of a slate, SIPS.

    Unbiased whatever the rewards depend on: the item, its slot, the whole slate. Its variance grows with the largest
    weights, of slates as their product.
    """
    return mean_of(weights(rounds) * rounds.rewards.sum(axis=1))


def clipped_ips(rounds: WeighedRounds, limits: Limits) -> Terms:
    """mean min(w, clip) sum_l r_l (Ionides 2008, J. Comput. Graph. Stat. 17).

    Biased downwards where rewards are at least 0: a round's value is at most clip times the largest reward.
    """
    return mean_of(np.minimum(weights(rounds), limits.clip) * rounds.rewards.sum(axis=1))


def snips(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Self-normalised IPS: sum w r / sum w (Swaminathan & Joachims, NeurIPS 2015).

    Consistent where IPS is unbiased, its bias falls with 1/R; it moves with the rewards when they are shifted, and lies
    within their range.
    """
    weight = weights(rounds)
    return Terms(np.zeros_like(weight), weight * rounds.rewards.sum(axis=1), weight)


def residual(rounds: WeighedRounds) -> np.ndarray:
    """r - q(x, a), (R,)."""
    difference: np.ndarray = rounds.rewards.sum(axis=1) - given(rounds.predicted)
    return difference


def dr(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Doubly robust: mean sum_a pi_e(a | x) q(x, a) + w (r - q(x, a)) (Dudik et al. 2014, Equation 6).

    Unbiased where IPS is, whatever q is, if q was not fitted to the round itself (cross-fitting); the better q, the
    smaller the variance.
    """
    return Terms(given(rounds.predicted_value), weights(rounds) * residual(rounds), np.ones(len(rounds.rewards)))


def sndr(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Self-normalised DR: mean sum_a pi_e q + sum w (r - q) / sum w (Thomas & Brunskill, ICML 2016, weighted DR).

    Consistent as SNIPS is, with DR's smaller variance.
    """
    weight = weights(rounds)
    return Terms(given(rounds.predicted_value), weight * residual(rounds), weight)


def switch_dr(rounds: WeighedRounds, limits: Limits) -> Terms:
    """mean sum_a pi_e q + w 1{w <= switch} (r - q) (Wang et al., ICML 2017, with DR's control variate).

    DR where weights are small, the reward model elsewhere: biased by q's error on those rounds alone.
    """
    weight = weights(rounds)
    kept = np.where(weight <= limits.switch, weight, 0.0)
    return Terms(given(rounds.predicted_value), kept * residual(rounds), np.ones_like(weight))


def dros(rounds: WeighedRounds, limits: Limits) -> Terms:
    """DR with optimistic shrinkage: mean sum_a pi_e q + w' (r - q), w' = lambda w / (w^2 + lambda) (Su et al. 2020).

    ICML. w' minimises a bound of the squared error; lambda to infinity is DR, to 0 the direct method. It is at most
    sqrt(lambda) / 2.
    """
    weight = weights(rounds)
    shrunk = limits.shrinkage * weight / (weight**2 + limits.shrinkage)
    return Terms(given(rounds.predicted_value), shrunk * residual(rounds), np.ones_like(weight))


def iips(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Independent IPS: mean sum_l r_l pi_e(a_l | x) / pi_b(a_l | x), of the slot alone (Li et al., KDD 2018).

    Unbiased if a slot's reward depends on its own item and not on the others (item-position model). Of a two-stage
    round the chance of the slot is that of both stages (`offline_eval.logs.picked_probabilities`).
    """
    return mean_of((np.exp(given(rounds.log_marginal_ratios)) * rounds.rewards).sum(axis=1))


def sn_iips(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Self-normalised `iips`: sum_l w_l r_l over the mean of the slots' weights, as SNIPS."""
    weighted = np.exp(given(rounds.log_marginal_ratios)) * rounds.rewards
    return Terms(np.zeros(len(weighted)), weighted.sum(axis=1), weight_of(rounds, "log_marginal_ratios"))


def rips(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Reward-interaction IPS: mean sum_l r_l prod_{j <= l} w_j (McInerney et al., KDD 2020).

    w_j = pi_e(a_j | x, a_<j) / pi_b(a_j | x, a_<j). Unbiased if a slot's reward depends on its own item and those above
    it alone (cascade).
    """
    return mean_of((np.exp(given(rounds.log_ratios).cumsum(axis=1)) * rounds.rewards).sum(axis=1))


def pseudo_inverse(rounds: WeighedRounds, limits: Limits) -> Terms:
    """mean (1 + sum_l (pi_e(a_l | x) / pi_b(a_l | x) - 1)) sum_l r_l (Swaminathan et al., NeurIPS 2017).

    The pseudo-inverse Gamma^+ in closed form for a b that fills the slots independently of each other (Section 3.1).
    Unbiased if then the expected reward of the whole slate is a sum of unknown contributions of its (item, slot) pairs:
    the reward need not be told slot by slot.
    """
    weight = 1 + np.where(rounds.shown, np.expm1(given(rounds.log_marginal_ratios)), 0.0).sum(axis=1)
    return mean_of(weight * rounds.rewards.sum(axis=1))


def inclusion(rounds: WeighedRounds, limits: Limits) -> Terms:
    """mean sum_l r_l pi_e(a_l in A | x) / pi_b(a_l in A | x): weights on the inclusion of the shown items.

    Of DESIGN §4 (the CA family off policy), after Ma et al., WWW 2020. Unbiased if a slot's reward depends on its own
    item and the LSR, given that `a` is among the candidates, shows it in that slot as often under e as under b: true
    for a uniform LSR. Where all candidates are shown it is enough that a reward does not depend on the slot. An LSR
    that picks the best shows an item more often among weak candidates: then the estimate is off by as much as the
    company differs. The mean weight is 1 where the assumption holds.
    """
    return mean_of((np.exp(given(rounds.log_inclusion_ratios)) * rounds.rewards).sum(axis=1))


def clipped_inclusion(rounds: WeighedRounds, limits: Limits) -> Terms:
    """`inclusion` with every item's weight lowered to clip: biased downwards where rewards are at least 0."""
    weight = np.minimum(np.exp(given(rounds.log_inclusion_ratios)), limits.clip)
    return mean_of((weight * rounds.rewards).sum(axis=1))


def sn_inclusion(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Self-normalised `inclusion`: sum_l w_l r_l over the mean of the shown items' weights, as SNIPS.

    Where the company of candidates differs (see `inclusion`), a mean weight that is off is divided out.
    """
    weighted = np.exp(given(rounds.log_inclusion_ratios)) * rounds.rewards
    return Terms(np.zeros(len(weighted)), weighted.sum(axis=1), weight_of(rounds, "log_inclusion_ratios"))


def candidate_set(rounds: WeighedRounds, limits: Limits) -> Terms:
    """mean P_e(A | x) / P_b(A | x) sum_l r_l: weights on the ordered candidates.

    Unbiased whatever the LSR does with the candidates and the users with the slate, as long as neither asks which
    policy drew them. The weight is a product over K positions: of use where the policies are close or K is small.
    """
    return mean_of(np.exp(given(rounds.log_set_ratios)) * rounds.rewards.sum(axis=1))


def sn_candidate_set(rounds: WeighedRounds, limits: Limits) -> Terms:
    """Self-normalised `candidate_set`, as SNIPS."""
    weight = np.exp(given(rounds.log_set_ratios))
    return Terms(np.zeros_like(weight), weight * rounds.rewards.sum(axis=1), weight)


OpeEstimatorName = Literal[
    "replay",
    "dm",
    "ips",
    "clipped-ips",
    "snips",
    "dr",
    "sndr",
    "switch-dr",
    "dros",
    "sips",
    "iips",
    "sn-iips",
    "rips",
    "pseudo-inverse",
    "inclusion",
    "clipped-inclusion",
    "sn-inclusion",
    "candidate-set",
    "sn-candidate-set",
]


class OpeEstimator(NamedTuple):
    """A member of OPE_ESTIMATORS."""

    terms: Callable[[WeighedRounds, Limits], Terms]
    weight: Weight | None
    """What it weighs by; None of those without weights."""
    needs: tuple[str, ...]
    """The fields of WeighedRounds that it reads beside the rewards."""
    reach: Callable[[Limits, float], float]
    """(limits, largest possible weight) -> how far two rounds' terms can lie apart, in units of the rewards' range
    with 0; nan where that is not known."""


MODELLED = ("predicted", "predicted_value")


def _of_ratios(
    terms: Callable[[WeighedRounds, Limits], Terms],
    weight: Weight = "log_ratios",
    reach: Callable[[Limits, float], float] = lambda limits, largest: largest,
) -> OpeEstimator:
    return OpeEstimator(terms, weight, (weight,), reach)


def _of_residuals(
    terms: Callable[[WeighedRounds, Limits], Terms], largest_weight: Callable[[Limits, float], float]
) -> OpeEstimator:
    """The model's value lies in the rewards' range, w (r - q) within w times it on both sides."""

    def reach(limits: Limits, largest: float) -> float:
        return 1 + 2 * largest_weight(limits, largest)

    return OpeEstimator(terms, "log_ratios", ("log_ratios", *MODELLED), reach)


OPE_ESTIMATORS: Mapping[OpeEstimatorName, OpeEstimator] = {
    "replay": OpeEstimator(replay, None, ("agrees",), lambda limits, largest: 1.0),
    "dm": OpeEstimator(dm, None, ("predicted_value",), lambda limits, largest: 1.0),
    "ips": _of_ratios(ips),
    "clipped-ips": _of_ratios(clipped_ips, reach=lambda limits, largest: min(limits.clip, largest)),
    "snips": _of_ratios(snips),
    "dr": _of_residuals(dr, lambda limits, largest: largest),
    "sndr": _of_residuals(sndr, lambda limits, largest: largest),
    "switch-dr": _of_residuals(switch_dr, lambda limits, largest: min(limits.switch, largest)),
    "dros": _of_residuals(dros, lambda limits, largest: min(math.sqrt(limits.shrinkage) / 2, largest)),
    "sips": _of_ratios(ips),  # IPS of a slate
    "iips": _of_ratios(iips, "log_marginal_ratios"),
    "sn-iips": _of_ratios(sn_iips, "log_marginal_ratios"),
    "rips": _of_ratios(rips),
    "pseudo-inverse": _of_ratios(pseudo_inverse, "log_marginal_ratios", lambda limits, largest: math.nan),
    "inclusion": _of_ratios(inclusion, "log_inclusion_ratios"),
    "clipped-inclusion": _of_ratios(
        clipped_inclusion, "log_inclusion_ratios", lambda limits, largest: min(limits.clip, largest)
    ),
    "sn-inclusion": _of_ratios(sn_inclusion, "log_inclusion_ratios"),
    "candidate-set": _of_ratios(candidate_set, "log_set_ratios"),
    "sn-candidate-set": _of_ratios(sn_candidate_set, "log_set_ratios"),
}
"""Name -> terms, what they weigh by and what they need."""
