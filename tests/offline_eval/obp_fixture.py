"""Regenerates obp_fixture.json with Open Bandit Pipeline 0.5.7, in an environment of its own.

    python3.11 -m venv obp
    obp/bin/pip install --no-deps --ignore-requires-python obp==0.5.7
    obp/bin/pip install scikit-learn pandas scipy
    obp/bin/python tests/offline_eval/obp_fixture.py

Random rounds of 4 items in one slot, and of 3 slots; what is kept are rewards, probabilities and obp's estimates.
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np

ROUNDS, ITEMS, SLOTS = 60, 4, 3
LIMITS = {"clip": 1.5, "switch": 1.5, "shrinkage": 2.0}


def single(ope, generator: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """One item a round: what is logged, and obp's estimates."""
    logged, target = (generator.dirichlet(np.ones(ITEMS), ROUNDS) * 0.9 + 0.1 / ITEMS for _ in range(2))
    rows = np.arange(ROUNDS)
    action = np.array([generator.choice(ITEMS, p=p / p.sum()) for p in logged])
    reward, model = generator.random(ROUNDS), generator.random((ROUNDS, ITEMS))
    greedy = np.eye(ITEMS)[target.argmax(axis=1)]
    logs = {"reward": reward, "action": action, "position": np.zeros(ROUNDS, int)}
    weighed = {**logs, "pscore": logged[rows, action], "action_dist": target[:, :, None]}
    modelled = {"estimated_rewards_by_reg_model": model[:, :, None]}
    clip, switch, shrinkage = LIMITS["clip"], LIMITS["switch"], LIMITS["shrinkage"]
    estimates = {
        "replay": ope.ReplayMethod().estimate_policy_value(**logs, action_dist=greedy[:, :, None]),
        "dm": ope.DirectMethod().estimate_policy_value(**logs, action_dist=target[:, :, None], **modelled),
        "ips": ope.InverseProbabilityWeighting().estimate_policy_value(**weighed),
        "clipped-ips": ope.InverseProbabilityWeighting(lambda_=clip).estimate_policy_value(**weighed),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**weighed),
        "dr": ope.DoublyRobust().estimate_policy_value(**weighed, **modelled),
        "sndr": ope.SelfNormalizedDoublyRobust().estimate_policy_value(**weighed, **modelled),
        "switch-dr": ope.SwitchDoublyRobust(lambda_=switch).estimate_policy_value(**weighed, **modelled),
        "dros": ope.DoublyRobustWithShrinkage(lambda_=shrinkage).estimate_policy_value(**weighed, **modelled),
    }
    kept = {
        "reward": reward,
        "logged": logged[rows, action],
        "target": target[rows, action],
        "greedy_agrees": greedy[rows, action].astype(int),
        "predicted": model[rows, action],
        "predicted_value": (target * model).sum(axis=1),
    }
    return kept, estimates


def slate(ope, generator: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Several slots a round; obp takes one row per slot, and cumulative products for the cascade."""
    size = (ROUNDS, SLOTS)
    logged, target, logged_marginal, target_marginal = (generator.uniform(0.2, 0.9, size) for _ in range(4))
    reward = generator.random(size)
    rows = {
        "slate_id": np.repeat(np.arange(ROUNDS), SLOTS),
        "reward": reward.ravel(),
        "position": np.tile(np.arange(SLOTS), ROUNDS),
    }
    whole, whole_target = (np.repeat(values.prod(axis=1), SLOTS) for values in (logged, target))
    estimates = {
        "sips": ope.SlateStandardIPS(len_list=SLOTS).estimate_policy_value(
            **rows, pscore=whole, evaluation_policy_pscore=whole_target
        ),
        "iips": ope.SlateIndependentIPS(len_list=SLOTS).estimate_policy_value(
            **rows,
            pscore_item_position=logged_marginal.ravel(),
            evaluation_policy_pscore_item_position=target_marginal.ravel(),
        ),
        "rips": ope.SlateRewardInteractionIPS(len_list=SLOTS).estimate_policy_value(
            **rows,
            pscore_cascade=logged.cumprod(axis=1).ravel(),
            evaluation_policy_pscore_cascade=target.cumprod(axis=1).ravel(),
        ),
    }
    kept = {
        "reward": reward,
        "logged": logged,
        "target": target,
        "logged_marginal": logged_marginal,
        "target_marginal": target_marginal,
    }
    return kept, estimates


def estimators() -> types.SimpleNamespace:
    """obp's estimators, without its packages' own imports, which ask for torch and more that no estimator uses."""
    torch = types.ModuleType("torch")
    torch.Tensor = torch.tensor = type("Tensor", (), {})  # a type hint of obp.utils
    sys.modules["torch"] = torch
    root = importlib.util.find_spec("obp").submodule_search_locations[0]
    for name, path in (("obp", root), ("obp.ope", f"{root}/ope")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    modules = (importlib.import_module(f"obp.ope.{name}") for name in ("estimators", "estimators_slate"))
    return types.SimpleNamespace(**{key: value for module in modules for key, value in vars(module).items()})


def main() -> None:
    """Write the fixture beside this file."""
    ope = estimators()
    generator = np.random.default_rng(0)
    (one, of_one), (many, of_many) = single(ope, generator), slate(ope, generator)
    fixture = {
        "obp": "0.5.7",
        "limits": LIMITS,
        "single": {name: values.tolist() for name, values in one.items()},
        "slate": {name: values.tolist() for name, values in many.items()},
        "estimates": {name: float(value) for name, value in {**of_one, **of_many}.items()},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(fixture))


if __name__ == "__main__":
    main()
