"""`python -m offline_eval compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from pydantic_settings import CliPositionalArg
from rich.table import Table

from esr_trainer.command_line import Command, note, show
from esr_trainer.config import LateStageRankerName, SlotWeightsName


class Compare(Command):
    """Replay the users of the runs' world through each checkpoint: policy value, 95 % interval, paired difference.

    Beside them: one popular list for everybody, random candidates, the optimum, and each checkpoint with its contexts
    permuted, which shows how much of its value comes from knowing the user.
    """

    candidate: CliPositionalArg[list[Path]]
    """Run or checkpoint directories to judge."""
    baseline: Path | None = None
    """Run or checkpoint directory that they are compared with; default one popular list for everybody."""
    data: Path | None = None
    """Where the world's file is now, if it was moved since training."""
    lsr: LateStageRankerName | Path | None = None
    """Judge with this late-stage ranker (a name, a file or a run) instead of the one trained with."""
    slot_weights: SlotWeightsName | None = None
    """Judge with these slot weights."""
    candidates: PositiveInt | None = None
    """Judge with this K."""
    slate: PositiveInt | None = None
    """Judge with this L."""

    def run(self) -> Mapping[str, Any]:
        """Compare, and print a table."""
        from offline_eval.compare import SYSTEM_SETTINGS, compare

        overrides = self.model_dump(mode="json", include=set(SYSTEM_SETTINGS), exclude_none=True)
        found = compare(self.candidate, self.baseline, self.data, overrides)
        note(f"world: {found.world}")
        note(f"system: {', '.join(f'{name} {value}' for name, value in found.system.items())}")
        table = Table("policy", "policy value", "95 % interval", f"minus {found.baseline}", "95 % interval", "permuted")
        table.title = f"expected reward over {found.num_contexts} contexts"
        table.add_row("uniform", f"{found.uniform_policy_value:.4f}", "", "", "", "")
        for judged in found.judged:
            value, difference, permuted = judged.policy_value, judged.difference, judged.permuted
            table.add_row(
                judged.name,
                f"{value.mean:.4f}",
                f"{value.low:.4f} to {value.high:.4f}",
                f"{difference.mean:+.4f}" if difference else "",
                f"{difference.low:+.4f} to {difference.high:+.4f}" if difference else "baseline",
                f"{permuted.mean:.4f}" if permuted else "",
            )
        table.add_row("optimum", f"{found.optimal_policy_value:.4f}", "", "", "", "")
        show(table)
        return {
            **found._asdict(),
            "judged": [
                {
                    "name": judged.name,
                    "policy_value": judged.policy_value._asdict(),
                    "difference": judged.difference._asdict() if judged.difference else None,
                    "permuted": judged.permuted._asdict() if judged.permuted else None,
                }
                for judged in found.judged
            ],
        }
