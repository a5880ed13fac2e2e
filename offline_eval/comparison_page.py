"""What `compare` found, as sections of a report."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offline_eval.comparison import Comparison, Judged
from offline_eval.figures import Chart
from offline_eval.intervals import Estimate
from offline_eval.list_measures import LIST_MEASURES
from offline_eval.report import Banner, Section, TableOfCells
from offline_eval.segments import SegmentValue

MOST_SEGMENTS = 24
"""Segments that one plot shows, the largest first; the table has them all."""


def comparison_sections(found: Comparison, command: str) -> list[Section]:
    """The verdict and everything that led to it.

    Args:
        found: what was found.
        command: what the user ran.
    """
    sections = [verdict_section(found), values_section(found, command), gates_section(found), lists_section(found)]
    return sections + ([segments_section(found, command)] if found.segmented_by else [])


def verdict_section(found: Comparison) -> Section:
    """Promote, hold or reject."""
    system = ", ".join(f"{name} {value}" for name, value in found.system.items())
    return Section(
        "Verdict",
        words=[
            f"World: {found.world}.",
            f"Every one of {found.num_contexts:,} contexts is replayed through each policy, and through its exported "
            f"bundle ({system}). Baseline: {found.baseline}.",
        ],
        verdicts=[Banner(verdict.decision, judged.name, verdict.because) for judged, verdict in found.candidates],
    )


def values_section(found: Comparison, command: str) -> Section:
    """Policy values and paired differences, with their intervals."""
    differs = f"{100 * found.confidence:.4g} % interval"
    columns = ["policy", "policy value", "95 % interval", f"minus {found.baseline}", differs, "permuted"]
    rows = [["uniform", f"{found.uniform_policy_value:.4f}", "", "", "", ""]]
    for judged in found.judged:
        rows.append(
            [
                judged.name,
                f"{judged.policy_value.mean:.4f}",
                interval(judged.policy_value),
                f"{judged.difference.mean:+.4f}" if judged.difference else "",
                interval(judged.difference, "+") if judged.difference else "baseline",
                f"{judged.permuted.mean:.4f}" if judged.permuted else "",
            ]
        )
    rows.append(["optimum", f"{found.optimal_policy_value:.4f}", "", "", "", ""])
    caption = "Expected reward per context; permuted: every context is answered as if it were another"
    chart = Chart(
        "policy-values",
        "Policy values",
        "Points with 95 % intervals; dashed: random candidates and the optimum; hollow: contexts permuted, which a "
        "retriever that ignores its user would not notice.",
        command,
        lambda: draw_values(found),
    )
    return Section("Policy values", tables=[TableOfCells(caption, columns, rows)], charts=[chart])


def gates_section(found: Comparison) -> Section:
    """Every condition that a candidate must meet, met or not."""
    rows = [
        [judged.name, gate.name, f"{gate.value:.4g}", gate.rule, "met" if gate.passed else f"no: {gate.failing_means}"]
        for judged, verdict in found.candidates
        for gate in verdict.gates
    ]
    caption = "What each candidate must meet whatever its policy value is"
    return Section("Gates", tables=[TableOfCells(caption, ["candidate", "gate", "value", "must be", ""], rows)])


def lists_section(found: Comparison) -> Section:
    """LIST_MEASURES of each policy."""
    rows = [
        [judged.name, *("" if (value := judged.measures[name]) is None else f"{value:.4f}" for name in LIST_MEASURES)]
        for judged in found.judged
    ]
    table = TableOfCells("Candidates of all contexts", ["policy", *LIST_MEASURES], rows)
    return Section("What the lists are like", tables=[table])


def segments_section(found: Comparison, command: str) -> Section:
    """Policy value by segment."""
    tables, charts = [], []
    for number, (judged, _) in enumerate(found.candidates, start=1):
        columns = [str(found.segmented_by), "contexts", "policy value", "difference", "interval"]
        rows = [
            [
                part.value,
                f"{part.num_contexts:,}",
                f"{part.policy_value.mean:.4f}",
                f"{part.difference.mean:+.4f}" if part.difference else "",
                interval(part.difference, "+") if part.difference else "",
            ]
            for part in judged.segments
        ]
        tables.append(TableOfCells(f"{judged.name} by {found.segmented_by}", columns, rows))
        charts.append(
            Chart(
                f"segments-{number}",
                f"{judged.name} by {found.segmented_by}",
                f"Paired difference to {found.baseline} with intervals that are corrected for the number of segments; "
                "right of 0 is a gain.",
                command,
                lambda judged=judged: draw_segments(judged.segments),  # type: ignore[misc]
            )
        )
    return Section("Segments", tables=tables, charts=charts)


def draw_values(found: Comparison) -> Figure:
    """Policy values with intervals, one line per policy."""
    judged = list(reversed(found.judged))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.45 * len(judged)), layout="constrained")
    draw_intervals(axes, [one.policy_value for one in judged], [short(one) for one in judged])
    permuted = [(one.permuted.mean, row) for row, one in enumerate(judged) if one.permuted]
    axes.plot(*zip(*permuted, strict=True), "o", markerfacecolor="none", color="C1", label="contexts permuted")
    for value in (found.uniform_policy_value, found.optimal_policy_value):
        axes.axvline(value, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("policy value (dashed: uniform, optimum)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def draw_segments(segments: Sequence[SegmentValue]) -> Figure:
    """Bars of the differences by segment, the largest segments first."""
    largest = sorted((part for part in segments if part.difference), key=lambda part: -part.num_contexts)
    shown = [(part, part.difference) for part in largest[:MOST_SEGMENTS] if part.difference][::-1]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(shown)), layout="constrained")
    labels = [f"{part.value} ({part.num_contexts:,})" for part, _ in shown]
    draw_intervals(axes, [difference for _, difference in shown], labels)
    axes.barh(range(len(shown)), [difference.mean for _, difference in shown], alpha=0.3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("difference of policy value")
    return figure


def draw_intervals(axes: Axes, estimates: Sequence[Estimate], labels: Sequence[str]) -> None:
    """Points with their intervals, one row each."""
    means = np.array([one.mean for one in estimates])
    reach = np.array([[one.mean - one.low, one.high - one.mean] for one in estimates]).T
    axes.errorbar(means, range(len(means)), xerr=reach.clip(min=0), fmt="o", capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.margins(y=0.15 if len(labels) < 6 else 0.05)


def short(judged: Judged) -> str:
    """The end of a long path."""
    return judged.name if len(judged.name) <= 32 else f"...{judged.name[-29:]}"


def interval(estimate: Estimate, sign: str = "") -> str:
    """From low to high."""
    return f"{estimate.low:{sign}.4f} to {estimate.high:{sign}.4f}"
