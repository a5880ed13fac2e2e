"""`python -m offline_eval ope-error`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from esr_trainer.command_line import Command, show


class OpeErrors(Command):
    """Simulate logs of policies whose value is known, and show how far the off-policy estimators are off.

    Prints bias, error, coverage of the 95 % intervals and the regret of choosing among ten policies; writes ope.json.
    """

    out: Path = Path("offline_eval/results")
    """Directory of the result."""
    logs: PositiveInt = 500
    """Logs that are simulated of each kind."""
    rounds: PositiveInt = 1000
    """Rounds of a log."""
    kuairec: Path | None = None
    """KuaiRec's labels (gt2_bits npz): a second world."""
    open_bandit: Path | None = None
    """Open Bandit's folder ({random,bts}/{men,women}): the bts policy from the random logs too."""

    def run(self) -> Mapping[str, Any]:
        """Simulate, print, write."""
        import json

        from rich.console import Console
        from rich.progress import track

        from offline_eval.grids import rich_table
        from offline_eval.logs.log_tables import errors_grid, finite
        from offline_eval.logs.ope_error import ope_errors
        from offline_eval.logs.ope_worlds import FAMILIES, kuairec_arena, synthetic_arena
        from offline_eval.logs.open_bandit import CAMPAIGNS, check_campaign
        from offline_eval.provenance import provenance
        from offline_eval.replay.comparison import plain

        worlds = {"synthetic": synthetic_arena()}
        if self.kuairec:
            worlds["kuairec labels"] = kuairec_arena(self.kuairec)
        jobs = [(world, family) for world in worlds for family in FAMILIES]
        found = [
            error
            for world, family in track(jobs, "simulating", console=Console(stderr=True), transient=True)
            for error in ope_errors(world, worlds[world], family, self.logs, self.rounds)
        ]
        bandits = [check_campaign(self.open_bandit, name) for name in CAMPAIGNS] if self.open_bandit else []
        show(rich_table(errors_grid(found)))
        result = {
            **provenance("python -m offline_eval ope-error --kuairec small_matrix_gt2.npz --open-bandit open_bandit"),
            "logs": self.logs,
            "rounds": self.rounds,
            "errors": finite(plain(found)),
            "open_bandit": finite(plain(bandits)),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "ope.json").write_text(json.dumps(result, indent=1))
        return result
