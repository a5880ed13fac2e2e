"""`python -m offline_eval`: judge checkpoints before they go live."""

import sys

from pydantic_settings import CliApp, CliSubCommand

from esr_trainer.command_line import Options, main
from offline_eval.closed_loop_command import ClosedLoop
from offline_eval.compare_command import Compare
from offline_eval.ma2020_command import Ma2020
from offline_eval.measure_commands import Inclusion, Runtime
from offline_eval.ope_error_command import OpeErrors
from offline_eval.pg_ret_command import PgRet
from offline_eval.report_command import Report
from offline_eval.reproduce_command import Reproduce
from offline_eval.sharding_command import Sharding
from offline_eval.tables_command import Tables


class OfflineEval(Options):
    """Judge checkpoints of esr_trainer before they go live."""

    compare: CliSubCommand[Compare]
    """Policy value, interval and paired difference of checkpoints, by replay."""

    closed_loop: CliSubCommand[ClosedLoop]
    """Serve, record, learn from the log, judge, publish: round after round."""

    reproduce: CliSubCommand[Reproduce]
    """The published tables and figures, and studies of our own: resumable, the paper's numbers beside ours."""

    ma2020: CliSubCommand[Ma2020]
    """Learning from bandit feedback in the procedure of Ma et al. (WWW 2020), by each loss."""

    pg_ret: CliSubCommand[PgRet]
    """A supervised retriever adapted to recall and to novelty, judged by another oracle than the reward's."""

    tables: CliSubCommand[Tables]
    """The tables of README.md and docs/results.md, written from the stored results."""

    report: CliSubCommand[Report]
    """One page of all stored results."""

    inclusion: CliSubCommand[Inclusion]
    """Error of the inclusion probabilities in closed form, against draws."""

    ope_error: CliSubCommand[OpeErrors]
    """Error of the estimators from logs, where the true value is known."""

    runtime: CliSubCommand[Runtime]
    """Milliseconds of a training step, as a multiple of its floor."""

    sharding: CliSubCommand[Sharding]
    """Policy values of one process and of several under torchrun, and what a step of each sharding costs."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        CliApp.run_subcommand(self)


if __name__ == "__main__":
    sys.exit(main(OfflineEval, "python -m offline_eval"))
