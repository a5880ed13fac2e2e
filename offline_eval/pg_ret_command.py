"""`python -m offline_eval pg-ret`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from esr_trainer.command_line import Command, note, show

if TYPE_CHECKING:
    from offline_eval.procedures.pg_ret import Judged


class PgRet(Command):
    """Adapt a supervised retriever to recall and to novelty on KuaiRec, judged by another oracle than the reward's.

    Writes <results>/pg-ret.json; a seed that is there is not run again.
    """

    budget: Literal["smoke", "short"] = "short"
    """smoke: 2 seeds, a few steps; short: 5 seeds, InfoNCE until its recall@10 stops growing and 2,000 steps of PG-Ret
    for each goal."""
    shared: Path = Path("../shared")
    """Folder with data/kuairec."""
    results: Path = Path("offline_eval/results")
    """Folder of the results."""

    def run(self) -> Mapping[str, Any]:
        """Run what is missing; print what is there."""
        os.environ["OMP_NUM_THREADS"] = "1"
        import json

        import torch

        from esr_trainer.environments import read_world
        from offline_eval.procedures.pg_ret import Judged, Question
        from offline_eval.procedures.pg_ret_runs import BUDGETS, judge_seed
        from offline_eval.provenance import provenance, write_json

        torch.set_num_threads(1)
        folder, budget, path = self.shared / "data" / "kuairec", BUDGETS[self.budget], self.results / "pg-ret.json"
        stored = json.loads(path.read_text()) if path.is_file() else {}
        judged = [Judged.model_validate(one) for one in stored.get("runs", [])]
        labels = read_world(folder / "small_matrix_gt2.npz").expected_reward
        question = Question.of(folder / "small_matrix_semisynthetic.npz", labels)
        for seed in sorted(set(budget.seeds).difference(one.seed for one in judged)):
            note(f"seed {seed}")
            judged += judge_seed(question, budget, seed)
            command = f"python -m offline_eval pg-ret --budget {self.budget}"
            write_json(path, {**provenance(command), "runs": [one.model_dump() for one in judged]})
        return self.summary(judged)

    def summary(self, judged: "list[Judged]") -> Mapping[str, Any]:
        """Means over the seeds and their standard errors, and paired differences from the supervised run."""
        from offline_eval.procedures.pg_ret import MEASURES, by_policy, differences, means
        from offline_eval.procedures.pg_ret_runs import SUPERVISED

        result: dict[str, Any] = {}
        table = Table("policy", *MEASURES, title="KuaiRec, judged by the real labels (standard error)")
        above = Table("policy", *MEASURES, title="Above the supervised run, paired by seed (standard error)")
        policies = by_policy(judged)
        for policy, own in policies.items():
            found, paired = means(own), differences(own, policies[SUPERVISED])
            table.add_row(policy, *(f"{one.mean:.4f} ({one.standard_error:.4f})" for one in found.values()))
            above.add_row(policy, *(f"{one.mean:+.4f} ({one.standard_error:.4f})" for one in paired.values()))
            result[policy] = {
                "steps": [one.steps for one in own],
                **{name: {**one._asdict(), "above supervised": paired[name]._asdict()} for name, one in found.items()},
            }
        show(table)
        show(above)
        return {"seeds": len({one.seed for one in judged}), "policies": result}
