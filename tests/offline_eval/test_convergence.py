"""Steps over the size of the catalogue: what is counted, and how it grows."""

import pytest

from esr_trainer.policy_value import optimal_value
from esr_trainer.synthetic import synthetic_world
from esr_trainer.training import greedy_values
from offline_eval.reproduce.convergence import (
    CANDIDATES,
    CONTEXTS,
    LEARNERS,
    NEVER,
    RATE_SEED,
    RATES,
    SHARE,
    Convergence,
    best_rate,
    convergence_grids,
    growth,
    mean_steps,
    steps_to_share,
    system_for,
)
from offline_eval.reproduce.plots import convergence_figure


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_gets_there_and_no_sooner(name: str) -> None:
    world = synthetic_world(CONTEXTS, 30, 0)
    learner = LEARNERS[name](world, 0, 0.01)
    steps = steps_to_share(learner, world, 600)
    system = system_for(world, CANDIDATES)
    reached = float(greedy_values(world, system, learner.policy).mean())
    assert steps == learner.step != NEVER
    assert reached >= SHARE * optimal_value(world, system)


def test_who_is_given_up_is_said() -> None:
    world = synthetic_world(CONTEXTS, 200, 0)
    assert steps_to_share(LEARNERS["REINFORCE (v, K = 1)"](world, 0, 0.01), world, 10) == NEVER


def test_the_rate_is_whoever_gets_there_first() -> None:
    begin = LEARNERS["top1"]
    world = synthetic_world(CONTEXTS, 60, RATE_SEED)
    steps = {rate: steps_to_share(begin(world, RATE_SEED, rate), world, 300) for rate in RATES}
    arrived = {rate: count for rate, count in steps.items() if count != NEVER}
    assert len(set(arrived.values())) > 1
    assert arrived[best_rate(begin, 60, 300)] == min(arrived.values())
    assert best_rate(begin, 60, 0) == RATES[0], "nobody gets there in no step"


ROWS = [
    Convergence("squared", n, seed, n * n // 100 * (1 + 3 * seed), 9999, 0.01) for n in (10, 20, 40) for seed in (0, 1)
]


def test_the_exponent_is_the_slope_over_sizes_that_every_seed_reached() -> None:
    """Seeds take n^2 / 100 and 4 n^2 / 100: the geometric mean is twice the first."""
    assert mean_steps(ROWS, "squared") == pytest.approx({10: 2, 20: 8, 40: 32})
    assert growth(mean_steps(ROWS, "squared")) == pytest.approx(2)
    unfinished = [*ROWS[:-1], ROWS[-1]._replace(steps=NEVER)]
    assert list(mean_steps(unfinished, "squared")) == [10, 20]
    (grid,) = convergence_grids(unfinished)
    assert grid.rows == [["squared, rate 0.01", "2", "8", "> 9999", ""]], "an exponent of the easy part would flatter"
    assert growth({10: 3.0}) is None
    assert convergence_grids(ROWS)[0].rows == [["squared, rate 0.01", "2", "8", "32", "2.00"]]


def test_the_figure_has_a_line_for_each_learner_and_two_to_read_it_by() -> None:
    (axes,) = convergence_figure(ROWS).axes
    assert [line.get_label() for line in axes.lines] == ["squared", "as N", "as N²"]
    assert list(axes.lines[0].get_xdata()) == [10, 20, 40]
