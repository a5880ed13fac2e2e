"""STUDIES: questions of our own, and the runs that answer them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from esr_trainer.command_line import UsageError
from esr_trainer.config import V_FAMILY, TrainConfig
from offline_eval.reproduce.cells import Cell, CellResult, read_results
from offline_eval.reproduce.plan import ITEM_CATEGORIES, ITEM_TEXTS, KUAIREC, LABELS, USER_FEATURES, Plan

CONTENDERS = ("v", "v-swr", "ca", "top1", "ca-poisson")
"""With one expert ca-swr is top1."""

GRID = {
    "adam": (0.03, 0.01, 0.003),
    "adagrad": (0.3, 0.1, 0.03),
}
"""Learning rates that are tried, by optimizer."""

SELECTION_SEED = 1000
"""Settings are chosen on this seed; the runs that are compared have others."""


class Study(NamedTuple):
    """A question, and the runs that answer it."""

    question: str
    cells: Callable[[Plan], Sequence[Cell]]
    reference: Mapping[str, str | float]
    """Settings of the run that each other one is compared with, seed by seed; the rest of its settings are the
    other's own."""


def presets(plan: Plan) -> list[Cell]:
    """The published setting, and exact V-PG for as long under both presets."""
    steps = plan.budget.paper_steps
    paper = [plan.config(preset="paper", estimator=name, steps=steps) for name in CONTENDERS]
    return plan.cells(*paper)


def grid(plan: Plan) -> list[Cell]:
    """Initialisation x optimizer x learning rate x entropy bonus for each estimator; V-PG with its baseline."""
    cells = []
    for estimator, init_std, (optimizer, rates), entropy in itertools.product(
        CONTENDERS, (1.0, 0.1), GRID.items(), (0.0, 0.1)
    ):
        for rate in rates:
            config = plan.config(
                estimator=estimator,
                init_std=init_std,
                optimizer=optimizer,
                learning_rate=rate,
                entropy=entropy,
                variance_reduction="baseline" if estimator in V_FAMILY else "none",
                steps=plan.budget.steps // 2,
                seed=SELECTION_SEED,
            )
            cells.append(Cell(learner="policy-gradient", config=config))
    return cells


def best(plan: Plan) -> list[Cell]:
    """Each estimator at its own best of `grid`."""
    found = read_results(plan.results / "grid.json")
    if missing := [cell for cell in grid(plan) if cell.key not in {result.cell.key for result in found}]:
        raise UsageError(f"best follows grid, of which {len(missing)} cells are not there: run `reproduce grid` first")
    wanted = {cell.key for cell in grid(plan)}
    chosen = []
    for name in CONTENDERS:
        of_estimator = [r for r in found if r.cell.key in wanted and r.cell.config.estimator == name]
        chosen.append(max(of_estimator, key=final_value).cell.config)
    return plan.cells(*(plan.config(**settings_of_optimizer(config)) for config in chosen))


def final_value(result: CellResult) -> float:
    """The policy value at the end; a run that failed has none."""
    return float("-inf") if result.failure else result.policy_value[-1]


def settings_of_optimizer(config: TrainConfig) -> dict[str, Any]:
    """What `grid` varies."""
    varied = {"estimator", "init_std", "optimizer", "learning_rate", "entropy", "variance_reduction"}
    return config.model_dump(include=varied)


VARIATIONS: Sequence[Mapping[str, Any]] = (
    {},
    {"candidates": 5},
    {"candidates": 20},
    {"candidates": 50},
    {"experts": 5},
    {"slate": 5},
    {"lsr": "noisy"},
    {"lsr": "uniform"},
    {"lsr": "anti"},
    {"data": KUAIREC, "candidates": 100},
)
"""What `where` changes, one at a time, from K = 10, L = 1, M = 1 and the optimal LSR on the synthetic world."""


def where(plan: Plan) -> list[Cell]:
    """The CA family over K, M, L, LSR and world, at the default preset."""
    steps = plan.budget.steps // 5
    names = ("top1", "ca", "ca-poisson")
    return plan.cells(*(plan.config(estimator=n, **{"steps": steps, **v}) for v in VARIATIONS for n in names))


def uniform_lsr(plan: Plan) -> list[Cell]:
    """Under the uniform LSR: with and without the control variate and the entropy bonus."""
    ways: list[dict[str, Any]] = [{"entropy": 0.0}]
    ways += [{"variance_reduction": "control-variate", "entropy": weight} for weight in (0.0, 0.1)]
    names = ("top1", "ca-poisson")
    return plan.cells(*(plan.config(estimator=n, lsr="uniform", **way) for n in names for way in ways))


def premise(plan: Plan) -> list[Cell]:
    """Proxies on the same number of interactions, at several learning rates, beside policy gradient."""
    from offline_eval.reproduce.proxies import LEARNERS

    rates, steps = (0.03, 0.01), plan.budget.steps * 2 // 5
    cells = plan.cells(*(plan.config(estimator=name, steps=steps) for name in ("top1", "ca-poisson")))
    cells += plan.cells(plan.config(estimator="v", variance_reduction="baseline", steps=steps))
    for learner in LEARNERS:
        tried = rates[:1] if learner.startswith("popularity") else rates
        configs = [plan.config(estimator="ca-poisson", learning_rate=rate, steps=steps) for rate in tried]
        cells += plan.cells(*configs, learner=learner)
    return cells


def held_out(plan: Plan) -> list[Cell]:
    """Feature towers on KuaiRec: a fifth of the contexts, or of the items, is never learned from; also on its labels,
    which the videos' texts may tell of, where semi-synthetic tastes are in no text."""
    from offline_eval.reproduce.held_out import LEARNERS

    if plan.shared is None:
        raise UsageError("held-out needs feature tables: name the data's folder with --shared")
    towers = {"estimator": "ca-poisson", "context_features": plan.shared / USER_FEATURES}
    categories, texts = plan.shared / ITEM_CATEGORIES, plan.shared / ITEM_TEXTS
    steps, rate = plan.budget.steps // 10, 0.03
    config = plan.config(KUAIREC, candidates=50, steps=steps, learning_rate=rate, item_features=categories, **towers)
    cells = [cell for learner in LEARNERS for cell in plan.cells(config, learner=learner)]
    labelled = [
        plan.config(
            LABELS, environment="kuairec", steps=steps // 2, learning_rate=rate / 3, item_features=table, **towers
        )
        for table in (categories, texts)
    ]
    return cells + plan.cells(*labelled, learner="held-out items, learned by features")


STUDIES: Mapping[str, Study] = {
    "presets": Study("What do the paper's setting and the default one reach?", presets, {"estimator": "top1"}),
    "grid": Study("Which initialisation, optimizer, learning rate and bonus suit each estimator?", grid, {}),
    "best": Study("Each estimator at its own best of the grid: which learns most?", best, {"estimator": "top1"}),
    "where": Study("Where does the closed form win, and where not?", where, {"estimator": "top1"}),
    "uniform-lsr": Study(
        "What helps where the LSR shows any candidate?",
        uniform_lsr,
        {"estimator": "top1", "variance_reduction": "control-variate", "entropy": 0.0},
    ),
    "premise": Study(
        "What do proxies reach with the same number of interactions?",
        premise,
        {"estimator": "top1", "learner": "policy-gradient"},
    ),
    "held-out": Study("What is known of contexts, or items, that were never met?", held_out, {}),
}
"""Name -> study."""
