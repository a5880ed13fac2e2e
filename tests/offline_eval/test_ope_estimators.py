"""Off-policy estimators: exact by enumeration of 5 items where their assumptions hold, off where they do not."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from offline_eval.logs.ope_estimators import OPE_ESTIMATORS, Limits
from offline_eval.logs.weighed_rounds import Terms, WeighedRounds, per_round, weight_of

N = 5
LOGGING = np.array([0.3, -0.5, 0.9, 0.0, -1.0])
TARGET = np.array([-0.4, 1.2, 0.1, -0.8, 0.5])
REWARD = np.array([1.0, 0.2, 0.7, 2.0, 0.4])
MODEL = np.array([0.5, 0.1, 1.0, 1.0, 0.0])
"""Logits of b and e, expected rewards, and a reward model that is wrong."""
UNLIMITED = Limits(clip=np.inf, switch=np.inf, shrinkage=1e300)
PAIRS = np.array(list(itertools.permutations(range(N), 2)))
TABLE = np.random.default_rng(0).random((N, N))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def pair_probabilities(logits: np.ndarray) -> np.ndarray:
    """P(first), P(second given first) of PAIRS by Plackett-Luce, (20, 2)."""
    p = softmax(logits)
    return np.stack([p[PAIRS[:, 0]], p[PAIRS[:, 1]] / (1 - p[PAIRS[:, 0]])], axis=1)


def expectation(terms: Terms, probabilities: np.ndarray) -> float:
    """The estimate of a log that holds every outcome as often as b brings it."""
    control, numerator, denominator = (float(probabilities @ values) for values in terms)
    return control + numerator / denominator


def items() -> tuple[WeighedRounds, np.ndarray, float]:
    """One slot: every item as a round, b's probabilities, and the value of e."""
    b, e = softmax(LOGGING), softmax(TARGET)
    rounds = WeighedRounds(
        rewards=REWARD[:, None],
        shown=np.ones((N, 1), bool),
        log_ratios=np.log(e / b)[:, None],
        predicted=MODEL,
        predicted_value=np.full(N, e @ MODEL),
    )
    return rounds, b, float(e @ REWARD)


def slates(reward: np.ndarray) -> tuple[WeighedRounds, np.ndarray, float]:
    """Two slots without replacement: every pair as a round of rewards (20, 2)."""
    b, e = pair_probabilities(LOGGING), pair_probabilities(TARGET)
    marginals = [np.stack([marginal(p, slot) for slot in range(2)], axis=1) for p in (e, b)]
    rounds = WeighedRounds(
        rewards=reward,
        shown=np.ones((len(PAIRS), 2), bool),
        log_ratios=np.log(e / b),
        log_marginal_ratios=np.log(marginals[0] / marginals[1]),
    )
    return rounds, b.prod(axis=1), float(e.prod(axis=1) @ reward.sum(axis=1))


def marginal(conditional: np.ndarray, slot: int) -> np.ndarray:
    """P(item in slot) of each of PAIRS' items there, (20,)."""
    probability = conditional.prod(axis=1)
    total = np.bincount(PAIRS[:, slot], probability, N)
    return total[PAIRS[:, slot]]


def two_stage(lsr: str, num_slots: int) -> tuple[WeighedRounds, np.ndarray, float]:
    """K = 2 candidates, an LSR that shows `num_slots` of them: every (candidates, shown) as a round."""
    b, e = (pair_probabilities(logits).prod(axis=1) for logits in (LOGGING, TARGET))
    included = [np.array([p[(item == PAIRS).any(axis=1)].sum() for item in range(N)]) for p in (e, b)]
    outcomes = []  # (row of PAIRS, items shown, the LSR's probability)
    for row, pair in enumerate(PAIRS):
        orders = [pair, pair[::-1]] if lsr == "uniform" else [pair[np.argsort(-REWARD[pair])]]
        outcomes += [(row, order[:num_slots], 1 / len(orders)) for order in orders]
    rows, lsr_probability = np.array([row for row, *_ in outcomes]), np.array([p for *_, p in outcomes])
    shown = np.array([order for _, order, _ in outcomes])
    rounds = WeighedRounds(
        rewards=REWARD[shown],
        shown=np.ones(shown.shape, bool),
        log_inclusion_ratios=np.log(included[0] / included[1])[shown],
        log_set_ratios=np.log(e / b)[rows],
    )
    value = float((e[rows] * lsr_probability) @ REWARD[shown].sum(axis=1))
    return rounds, b[rows] * lsr_probability, value


@pytest.mark.parametrize("name", ["ips", "clipped-ips", "snips", "dr", "sndr", "switch-dr", "dros", "sips"])
def test_item_estimators_are_exact_without_limits(name) -> None:
    rounds, probability, value = items()
    assert expectation(OPE_ESTIMATORS[name].terms(rounds, UNLIMITED), probability) == pytest.approx(value, rel=1e-12)


def test_the_direct_method_is_as_wrong_as_its_model_and_dr_is_not() -> None:
    rounds, probability, value = items()
    model_value = float(softmax(TARGET) @ MODEL)
    assert abs(model_value - value) > 0.05
    assert expectation(OPE_ESTIMATORS["dm"].terms(rounds, Limits()), probability) == pytest.approx(model_value)


def test_limits_cut_the_weights_by_hand() -> None:
    """Two rounds: w = 4, r = 3, q = 1, v = 1/2 and w = 1/2, r = 1, q = 1, v = 2."""
    rounds = WeighedRounds(
        rewards=np.array([[3.0], [1.0]]),
        shown=np.ones((2, 1), bool),
        log_ratios=np.log([[4.0], [0.5]]),
        predicted=np.ones(2),
        predicted_value=np.array([0.5, 2.0]),
    )
    limits = Limits(clip=3.0, switch=3.0, shrinkage=4.0)
    by_hand = {
        "ips": (4 * 3 + 0.5) / 2,
        "clipped-ips": (3 * 3 + 0.5) / 2,
        "snips": (4 * 3 + 0.5) / 4.5,
        "dm": 1.25,
        "dr": 1.25 + (4 * 2 + 0) / 2,
        "sndr": 1.25 + (4 * 2 + 0) / 4.5,
        "switch-dr": 1.25,  # the first round's weight is above 3, the second's residual is 0
        "dros": 1.25 + (4 * 4 / (16 + 4) * 2) / 2,
    }
    found = {name: per_round(OPE_ESTIMATORS[name].terms(rounds, limits)).mean() for name in by_hand}
    assert found == pytest.approx(by_hand, rel=1e-12)


def test_replay_is_exact_for_uniform_logging_and_off_for_another() -> None:
    agrees = np.arange(N) == TARGET.argmax()
    rounds = WeighedRounds(REWARD[:, None], np.ones((N, 1), bool), agrees=agrees)
    terms = OPE_ESTIMATORS["replay"].terms(rounds, Limits())
    assert expectation(terms, np.full(N, 1 / N)) == pytest.approx(REWARD[TARGET.argmax()])
    two_contexts = Terms(
        *(np.concatenate([values, values * factor]) for values, factor in zip(terms, (1, 3, 1), strict=True))
    )
    assert expectation(two_contexts, np.full(2 * N, 1 / (2 * N))) == pytest.approx(2 * REWARD[TARGET.argmax()])
    uneven = np.concatenate([np.full(N, 1 / N), softmax(LOGGING)]) / 2
    assert abs(expectation(two_contexts, uneven) - 2 * REWARD[TARGET.argmax()]) > 0.05


ITEM_ONLY = REWARD[PAIRS] * [1.0, 0.5]
CASCADE = np.stack([REWARD[PAIRS[:, 0]], TABLE[PAIRS[:, 0], PAIRS[:, 1]]], axis=1)
WHOLE = np.stack([TABLE[PAIRS[:, 1], PAIRS[:, 0]], TABLE[PAIRS[:, 0], PAIRS[:, 1]]], axis=1)


@pytest.mark.parametrize(
    ("name", "exact", "off"),
    [
        ("sips", [ITEM_ONLY, CASCADE, WHOLE], []),
        ("rips", [ITEM_ONLY, CASCADE], [WHOLE]),
        ("iips", [ITEM_ONLY], [WHOLE]),
    ],
)
def test_slate_estimators_are_exact_under_their_assumption(name, exact, off) -> None:
    for reward in exact:
        rounds, probability, value = slates(reward)
        assert expectation(OPE_ESTIMATORS[name].terms(rounds, Limits()), probability) == pytest.approx(value, rel=1e-12)
    for reward in off:
        rounds, probability, value = slates(reward)
        assert abs(expectation(OPE_ESTIMATORS[name].terms(rounds, Limits()), probability) - value) > 1e-3


def test_pseudo_inverse_is_exact_for_additive_slates_under_independent_slots() -> None:
    """b fills both slots independently; e draws without replacement; only the slate's sum is told."""
    every = np.array(list(itertools.product(range(N), repeat=2)))
    b, conditional = softmax(LOGGING), pair_probabilities(TARGET)
    e_marginal = np.stack(
        [np.bincount(PAIRS[:, slot], conditional.prod(axis=1), N) for slot in range(2)], axis=1
    )  # (N, 2)
    log_ratios = np.log(np.stack([e_marginal[every[:, slot], slot] / b[every[:, slot]] for slot in range(2)], axis=1))

    def estimate(total: np.ndarray) -> float:
        rewards = np.stack([total, np.zeros_like(total)], axis=1)
        rounds = WeighedRounds(rewards, np.ones(every.shape, bool), log_marginal_ratios=log_ratios)
        return expectation(OPE_ESTIMATORS["pseudo-inverse"].terms(rounds, Limits()), b[every].prod(axis=1))

    additive = REWARD[every[:, 0]] + MODEL[every[:, 1]]
    value = float(conditional.prod(axis=1) @ (REWARD[PAIRS[:, 0]] + MODEL[PAIRS[:, 1]]))
    assert estimate(additive) == pytest.approx(value, rel=1e-12)
    product = TABLE[every[:, 0], every[:, 1]]
    assert abs(estimate(product) - conditional.prod(axis=1) @ TABLE[PAIRS[:, 0], PAIRS[:, 1]]) > 1e-3


@pytest.mark.parametrize(("lsr", "num_slots"), [("uniform", 1), ("uniform", 2), ("optimal", 2)])
def test_inclusion_weights_are_exact_where_the_lsr_shows_a_candidate_alike(lsr, num_slots) -> None:
    rounds, probability, value = two_stage(lsr, num_slots)
    for name in ("inclusion", "sn-inclusion"):
        found = expectation(OPE_ESTIMATORS[name].terms(rounds, Limits()), probability)
        assert found == pytest.approx(value, rel=1e-12)
    assert probability @ weight_of(rounds, "log_inclusion_ratios") == pytest.approx(1)


def test_inclusion_weights_are_off_where_the_company_decides_what_is_shown() -> None:
    rounds, probability, value = two_stage("optimal", 1)
    found = expectation(OPE_ESTIMATORS["inclusion"].terms(rounds, Limits()), probability)
    assert abs(found - value) > 0.01
    assert abs(probability @ weight_of(rounds, "log_inclusion_ratios") - 1) > 0.01, "and the mean weight tells"


@pytest.mark.parametrize(("lsr", "num_slots"), [("uniform", 1), ("optimal", 1), ("optimal", 2)])
def test_candidate_set_weights_are_exact_whatever_the_lsr_does(lsr, num_slots) -> None:
    rounds, probability, value = two_stage(lsr, num_slots)
    for name in ("candidate-set", "sn-candidate-set"):
        found = expectation(OPE_ESTIMATORS[name].terms(rounds, Limits()), probability)
        assert found == pytest.approx(value, rel=1e-12)


def test_a_clipped_item_counts_with_the_clip() -> None:
    rounds = WeighedRounds(
        rewards=np.array([[2.0, 1.0]]),
        shown=np.ones((1, 2), bool),
        log_inclusion_ratios=np.log([[7.0, 0.5]]),
    )
    assert OPE_ESTIMATORS["clipped-inclusion"].terms(rounds, Limits(clip=3.0)).numerator == pytest.approx([6.5])


def test_empty_slots_and_items_without_support_weigh_nothing() -> None:
    rounds = WeighedRounds(
        rewards=np.array([[2.0, 0.0], [1.0, 4.0]]),
        shown=np.array([[True, False], [True, True]]),
        log_inclusion_ratios=np.array([[np.log(3.0), 0.0], [-np.inf, 0.0]]),
    )
    assert weight_of(rounds, "log_inclusion_ratios") == pytest.approx([3, 0.5])
    assert OPE_ESTIMATORS["sn-inclusion"].terms(rounds, Limits()).numerator == pytest.approx([6, 4])


@pytest.mark.parametrize("name", OPE_ESTIMATORS)
def test_per_round_terms_average_to_the_estimate_and_spread_as_it_does(name) -> None:
    """The standard error of the terms is the spread of the estimate over 400 logs."""
    generator = np.random.default_rng(5)
    logs = 400
    estimates, errors = [], []
    for _ in range(logs):
        rounds = random_rounds(generator, 200)
        terms = OPE_ESTIMATORS[name].terms(rounds, Limits())
        values = per_round(terms)
        assert values.shape == (200,)
        control, numerator, denominator = (part.mean() for part in terms)
        assert values.mean() == pytest.approx(control + numerator / denominator, rel=1e-9)
        estimates.append(values.mean())
        errors.append(values.std(ddof=1) / 200**0.5)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)


def random_rounds(generator: np.random.Generator, count: int) -> WeighedRounds:
    """Rounds with every field, of moderate weights."""
    size = (count, 2)
    agrees = generator.random(count) < 0.4
    return WeighedRounds(
        rewards=generator.exponential(size=size) + 1,
        shown=np.ones(size, bool),
        log_ratios=0.3 * generator.normal(size=size),
        log_marginal_ratios=0.3 * generator.normal(size=size),
        log_inclusion_ratios=0.5 * generator.normal(size=size),
        log_set_ratios=0.5 * generator.normal(size=count),
        agrees=agrees,
        predicted=generator.random(count),
        predicted_value=generator.random(count),
    )


def test_no_agreement_is_not_a_number() -> None:
    rounds = WeighedRounds(np.ones((3, 1)), np.ones((3, 1), bool), agrees=np.zeros(3, bool))
    assert np.isnan(per_round(OPE_ESTIMATORS["replay"].terms(rounds, Limits()))).all()


@pytest.mark.parametrize("name", OPE_ESTIMATORS)
def test_no_term_reaches_further_than_its_bound(name) -> None:
    """Rewards in [0, 1], largest weight W: what empirical Bernstein relies on."""
    generator = np.random.default_rng(6)
    rounds = random_rounds(generator, 500)
    rounds = rounds._replace(rewards=np.concatenate([generator.random((500, 1)), np.zeros((500, 1))], axis=1))
    estimator, limits = OPE_ESTIMATORS[name], Limits(clip=1.5, switch=1.5, shrinkage=4.0)
    largest = 1.0
    if estimator.weight is not None:
        ratios = getattr(rounds, estimator.weight)
        products = ratios.cumsum(axis=1) if ratios.ndim == 2 and estimator.weight == "log_ratios" else ratios
        largest = float(np.exp(products).max())
    control, numerator, _ = estimator.terms(rounds, limits)
    reach = estimator.reach(limits, largest)
    assert np.isnan(reach) == (name == "pseudo-inverse")
    if not np.isnan(reach):
        assert np.ptp(control + numerator) <= reach + 1e-12


def test_agreement_with_open_bandit_pipeline() -> None:
    """To 1e-6, on numbers that tests/offline_eval/obp_fixture.py computed in an environment of its own."""
    fixture = json.loads((Path(__file__).parent / "obp_fixture.json").read_text())
    single, slate = ({name: np.array(values) for name, values in fixture[part].items()} for part in ("single", "slate"))
    limits = Limits(**fixture["limits"])
    one_slot = WeighedRounds(
        rewards=single["reward"][:, None],
        shown=np.ones((len(single["reward"]), 1), bool),
        log_ratios=np.log(single["target"] / single["logged"])[:, None],
        agrees=single["greedy_agrees"].astype(bool),
        predicted=single["predicted"],
        predicted_value=single["predicted_value"],
    )
    slots = WeighedRounds(
        rewards=slate["reward"],
        shown=np.ones(slate["reward"].shape, bool),
        log_ratios=np.log(slate["target"] / slate["logged"]),
        log_marginal_ratios=np.log(slate["target_marginal"] / slate["logged_marginal"]),
    )
    for name, theirs in fixture["estimates"].items():
        rounds = slots if name in ("sips", "iips", "rips") else one_slot
        ours = per_round(OPE_ESTIMATORS[name].terms(rounds, limits)).mean()
        assert ours == pytest.approx(theirs, abs=1e-6), name
    assert len(fixture["estimates"]) == 12
