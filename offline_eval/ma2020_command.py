"""`python -m offline_eval ma2020`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from esr_trainer.command_line import Command, UsageError, show

if TYPE_CHECKING:
    from offline_eval.procedures.ma2020 import Budget, Judged


WorldName = Literal["kuairec-labels", "movielens", "xmc"]


class Ma2020(Command):
    """Learn an ESR from bandit feedback by each loss, in the procedure of Ma et al. (WWW 2020).

    Each loss has its own best learning rate, chosen on other seeds. Finished runs are kept in <results>/ma2020.json and
    not computed again.
    """

    world: WorldName = "kuairec-labels"
    """Whose full labels: KuaiRec's real ones; MovieLens-1M's ratings, simulated where they are missing; or those of a
    file in the extreme-classification repository's sparse format, such as Wiki10-31K's."""
    budget: Literal["smoke", "short", "paper"] = "short"
    """smoke: 2 seeds, 10 steps; short: 3 seeds, 3 learning rates chosen from on 2 others; paper: 20 seeds, 4 rates
    chosen from on 5 others. At most 400 steps; a run ends when its held-out samples say so."""
    data: Path = Path("../shared/data/kuairec/small_matrix_gt2.npz")
    """KuaiRec's small_matrix_gt2.npz; the folder of MovieLens's ratings.dat, users.dat and movies.dat; or the file."""
    results: Path = Path("offline_eval/results")
    """Folder of the results."""

    def run(self) -> Mapping[str, Any]:
        """Run what is missing; print what is there."""
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch

        from offline_eval.procedures.ma2020 import BUDGETS, Judged, experiment, facts, open_labels

        torch.set_num_threads(1)
        path, budget = self.results / "ma2020.json", BUDGETS[self.budget]
        labelled = open_labels(self.world, self.data)
        stored = json.loads(path.read_text()) if path.is_file() else {}
        about = {"world": self.world, "fingerprint": labelled.world.fingerprint, "procedure": facts(labelled.cuts)}
        for name, value in about.items():
            if stored and stored.get(name) != value:
                raise UsageError(f"results ({path}) are of another {name}, {stored.get(name)}: name another folder")
        judged = [Judged.model_validate(run) for run in stored.get("runs", [])]
        for one in experiment(labelled, budget, judged):
            judged.append(one)
            self.write(path, judged, about)
        return self.summary(judged, budget, labelled.cuts)

    def write(self, path: Path, judged: "Sequence[Judged]", about: Mapping[str, Any]) -> None:
        """Keep every run, whole or not at all."""
        from offline_eval.provenance import provenance, write_json

        command = f"python -m offline_eval ma2020 --world {self.world} --budget {self.budget}"
        runs = [one.model_dump() for one in judged]
        write_json(path, {**provenance(command), **about, "runs": runs})

    def summary(self, judged: "Sequence[Judged]", budget: "Budget", cuts: tuple[int, ...]) -> Mapping[str, Any]:
        """Means over the seeds and their standard errors, printed and given."""
        from esr_trainer.replicas import mean_over_seeds
        from offline_eval.procedures.ma2020 import of_result

        result: dict[str, Any] = {}
        runs = of_result(list(judged), budget, cuts)
        measured = list(judged[0].measures)
        stages = {stage: [name for name in measured if name.startswith(stage)] for stage in ("one-stage", "two-stage")}
        for stage, names in stages.items():
            table = Table("policy", "learning rate", *(name.removeprefix(stage) for name in names))
            table.title = f"{stage}, percent: mean over {budget.runs} seeds (standard error)"
            for policy, own in runs.items():
                found = {name: mean_over_seeds([one.measures[name] for one in own]) for name in names}
                cells = [f"{100 * one.mean:.2f} ({100 * one.standard_error:.2f})" for one in found.values()]
                table.add_row(policy, f"{own[0].learning_rate:g}", *cells)
                result.setdefault(policy, {}).update({name: one._asdict() for name, one in found.items()})
            show(table)
        return {"budget": self.budget, "runs": budget.runs, "policies": result}
