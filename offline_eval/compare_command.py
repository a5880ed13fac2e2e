"""`python -m offline_eval compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import Command, UsageError, note
from esr_trainer.config import LateStageRankerName, NonNegative, SlotWeightsName
from offline_eval.logs.log_options import LogOptions
from offline_eval.report_command import RESULTS, check_place, command_line, write_report

if TYPE_CHECKING:  # torch is not loaded for --help
    from offline_eval.replay.compare import Question
    from offline_eval.report.report import Section


REPLAY_ONLY = ("bundle", "by", "segments", "min_recall", "data", "lsr", "candidates", "slate")
"""Options that a log leaves nothing to ask."""


class Compare(Command):
    """Judge checkpoints by replay (the users of the runs' world through each and through its bundle) or by a log.

    Prints policy value, paired difference to the baseline, what the lists are like, the gates, and a verdict for each
    candidate; exits with 0 (promote), 3 (hold) or 4 (reject), of several candidates the best one's. Beside them: one
    popular list for everybody, random candidates, the optimum, and each checkpoint with its contexts permuted, which
    shows how much of its value comes from knowing the user.
    """

    candidate: CliPositionalArg[list[Path]]
    """Run or checkpoint directories to judge."""
    baseline: Path | None = None
    """Run or checkpoint directory that they are compared with; default one popular list for everybody."""
    bundle: tuple[Path, ...] = ()
    """The candidate's bundle or bundle root (its highest version), once for each candidate; default each candidate is
    exported for the comparison."""
    margin: NonNegative = 0.0
    """Least gain that is worth a promotion: the whole interval of the difference must lie above it."""
    by: str | None = None
    """Column of the context features by whose values contexts are judged apart: no segment may surely lose."""
    segments: Path | None = None
    """CSV or Parquet with that column (first column the context's id); default the features of the first candidate."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """The least share of the trained candidates that a bundle with an approximate index must serve."""
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

    log: str | None = None
    """Judge by this log with propensities instead of by replay: a feedback log (an SQLite or Parquet file, or a
    database's URL), Open Bandit's CSV, or a CSV or Parquet of context_id, item_id, reward and propensity; slates have
    round_id and slot beside (rows in that order; propensity: given the slots above), and slot_propensity where the
    item's chance of the slot alone is known. Candidates and baseline may be bundles; default baseline what the logged
    policy earned."""
    logged: LogOptions = LogOptions()
    """How the log is judged."""

    report: Path | None = None
    """Write a page with the verdict, its tables and plots, and behind them what --results holds."""
    figures: Path | None = None
    """Folder for the page's figures as SVG and PDF."""
    results: Path = RESULTS
    """Folder of what `reproduce` has stored, for the page."""

    def run(self) -> Mapping[str, Any]:
        """Compare, and print tables and the verdict."""
        if self.figures and not self.report:
            raise UsageError(f"figures ({self.figures}) needs --report, the page whose figures they are")
        if self.report:
            check_place(self.report)
        return self.replay() if self.log is None else self.judge_log(self.log)

    def judge_log(self, log: str) -> Mapping[str, Any]:
        """Compare by the rounds of a log."""
        from offline_eval.logs.log_evaluation import LogQuestion, evaluate_log
        from offline_eval.logs.log_tables import log_json, show_log

        if named := [name for name in REPLAY_ONLY if getattr(self, name) != type(self).model_fields[name].default]:
            raise UsageError(f"{named[0]} is for replay: a log ({log}) has its own")
        question = LogQuestion(log, self.margin, self.slot_weights or "sum", self.logged)
        found = evaluate_log(question, self.candidate, self.baseline)
        show_log(found)
        if self.report:
            from offline_eval.report.log_page import log_sections

            self.write_page(log_sections(found, command_line()))
        return log_json(found)

    def replay(self) -> Mapping[str, Any]:
        """Compare by replay."""
        from rich.console import Console
        from rich.progress import Progress

        from offline_eval.replay.compare import compare
        from offline_eval.replay.comparison_tables import show_comparison

        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=1 + len(self.candidate), completed=-1)
            found = compare(self.question(), lambda doing: progress.update(task, advance=1, description=doing))
            progress.update(task, advance=1, description="judged")
        note(f"world: {found.world}")
        note(f"system: {', '.join(f'{name} {value}' for name, value in found.system.items())}")
        show_comparison(found)
        if self.report:
            from offline_eval.report.comparison_page import comparison_sections

            self.write_page(comparison_sections(found, command_line()))
        return found.as_json()

    def write_page(self, sections: "Sequence[Section]") -> None:
        """Write the report: what was found, then what was reproduced."""
        from offline_eval.report.results_page import results_sections

        assert self.report
        names = ", ".join(path.name for path in self.candidate)
        write_report(
            self.report, f"Verdict on {names}", [*sections, *results_sections(self.results, "short")], self.figures
        )

    def exit_code(self, result: Mapping[str, Any]) -> int:
        """The best candidate's."""
        return int(result["exit_code"])

    def question(self) -> "Question":
        """What was asked."""
        from offline_eval.replay.compare import SYSTEM_SETTINGS, Question
        from offline_eval.replay.replay_gates import Bars

        return Question(
            candidates=self.candidate,
            baseline=self.baseline,
            data=self.data,
            overrides=self.model_dump(mode="json", include=set(SYSTEM_SETTINGS), exclude_none=True),
            bundles=self.bundle,
            segments=self.segments,
            bars=Bars(self.margin, self.min_recall, self.by),
        )
