"""What `compare` found, as sections of a report."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offline_eval.intervals import Estimate
from offline_eval.replay.comparison import Comparison, Judged
from offline_eval.replay.comparison_tables import (
    gates_grid,
    how_sure,
    lists_grid,
    segments_grid,
    serving_grid,
    value_grid,
    verdicts_by_name,
)
from offline_eval.replay.segments import SegmentValue
from offline_eval.report.figures import Chart
from offline_eval.report.report import Banner, Section
from offline_eval.verdict import Verdict

MOST_SEGMENTS = 24
"""Segments that one plot shows, the largest first; the table has them all."""


def comparison_sections(found: Comparison, command: str) -> list[Section]:
    """The verdict and everything that led to it.

    Args:
        found: what was found.
        command: what the user ran.
    """
    values = Chart(
        "policy-values",
        "Policy values",
        "Points with 95 % intervals; dashed: random candidates and the optimum; hollow: contexts permuted, which a "
        "retriever that ignores its user would not notice.",
        lambda: draw_values(found),
    )
    sections = [
        verdict_section(found, command),
        Section("Policy values", tables=[value_grid(found)], charts=[values]),
        Section("Gates", tables=[gates_grid(verdicts_by_name(found))]),
        Section("Lists, and what is served", tables=[lists_grid(found), serving_grid(found)]),
    ]
    return sections + ([segments_section(found)] if found.segmented_by else [])


def verdict_section(found: Comparison, command: str) -> Section:
    """Promote, hold or reject."""
    system = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.system.items())
    return Section(
        "Verdict",
        words=[
            f"World: {found.world}.",
            f"Every one of {found.num_contexts:,} contexts is replayed through each policy, and through each "
            f"candidate's exported bundle ({system}). Baseline: {found.baseline}.",
            sentence(how_sure(found)),
        ],
        verdicts=banners(verdicts_by_name(found)),
        command=command,
    )


def sentence(words: str) -> str:
    """With a capital letter and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def banners(verdicts: Sequence[tuple[str, Verdict]]) -> list[Banner]:
    """Verdicts in words, by the candidate's name."""
    return [Banner(verdict.decision, name, verdict.because) for name, verdict in verdicts]


def segments_section(found: Comparison) -> Section:
    """Policy value by segment."""
    charts = [
        Chart(
            f"segments-{number}",
            f"{judged.name} by {found.segmented_by}",
            f"Paired difference to {found.baseline} with intervals that are corrected for the number of segments; "
            "right of 0 is a gain.",
            partial(draw_segments, judged.segments),
        )
        for number, (judged, _) in enumerate(found.candidates, start=1)
    ]
    return Section("Segments", tables=[segments_grid(found)], charts=charts)


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
