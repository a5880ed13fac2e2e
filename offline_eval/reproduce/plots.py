"""Plots of results: one function per figure, from data alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline_eval.reproduce.cells import CellResult
from offline_eval.reproduce.convergence import BATCH, CONTEXTS, SHARE, Convergence, mean_steps
from offline_eval.reproduce.gradient_variance import EXACT, LABELS, REST, ZERO, GradientError
from offline_eval.reproduce.inclusion_error import PaperError
from offline_eval.reproduce.runtime import Timing
from offline_eval.reproduce.scale import ScaleTiming

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "offline_eval"  # the same data, the same file

DPI = 110

UNDATED: Mapping[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Ending -> what leaves the moment out."""


def endings(is_pdf_wanted: bool) -> tuple[str, ...]:
    """The formats of a figure."""
    return ("png", "svg", "pdf") if is_pdf_wanted else ("png", "svg")


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure as `path` with each ending, the same bytes whenever it is drawn, and close it."""
    paths = [path.with_suffix(f".{ending}") for ending in formats]
    for written in paths:
        figure.savefig(written, dpi=DPI, metadata=UNDATED.get(written.suffix))
    plt.close(figure)
    return paths


def runtime_figure(rows: Sequence[Timing]) -> Figure:
    """Bars of the multiple of the floor, one group per (N, K, L, M), one colour per estimator."""
    names = list(dict.fromkeys(row.estimator for row in rows))
    groups = list(dict.fromkeys(row[1:5] for row in rows))
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    for position, name in enumerate(names):
        heights = [row.multiple for row in rows if row.estimator == name]
        offsets = [group + (position - len(names) / 2 + 0.5) / (len(names) + 1) for group in range(len(groups))]
        axes.bar(offsets, heights, width=1 / (len(names) + 1), label="top1, ca-swr" if name == "ca-swr" else name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f"N={n:,}\nK={k}\nL={slots}\nM={m}" for n, k, slots, m in groups], fontsize=8)
    axes.set_ylabel("training step / floor of one expert")
    axes.set_title("Runtime of a training step, one thread, batch 128, 10 dimensions")
    axes.legend(ncols=len(names), fontsize=8)
    return figure


def scale_figure(rows: Sequence[ScaleTiming]) -> Figure:
    """Milliseconds of a step over N for each kind of catalogue, both logarithmic."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for kind in dict.fromkeys(row.catalogue for row in rows):
        own = [row for row in rows if row.catalogue == kind]
        sizes = [row.num_items for row in own]
        axes.loglog(sizes, [row.processor_milliseconds for row in own], marker="o", label=f"{kind} catalogue")
    axes.set_xlabel("items")
    axes.set_ylabel("training step, ms of processor time")
    axes.set_title("A training step over the size of the catalogue, batch 128, 64 dimensions, K = 100")
    axes.legend()
    return figure


def curves_figure(groups: Mapping[str, Sequence[CellResult]], title: str) -> Figure:
    """Policy value over steps: the mean over seeds in a band from the lowest to the highest seed, and the optimum."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for label, results in groups.items():
        whole = [result for result in results if not result.failure]
        if not whole:
            continue
        values = np.array([result.policy_value for result in whole])
        seeds = f"{len(whole)} seed{'s' * (len(whole) > 1)}"
        (line,) = axes.plot(whole[0].steps, values.mean(axis=0), label=f"{label}, {seeds}")
        axes.fill_between(whole[0].steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2)
    for optimum in {result.references["optimal"] for results in groups.values() for result in results}:
        axes.axhline(optimum, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("gradient steps (dashed: the optimum)")
    axes.set_ylabel("policy value")
    axes.set_title(title)
    axes.legend(fontsize=8)
    return figure


def variance_figure(rows: Sequence[GradientError]) -> Figure:
    """Variance and bias of a sample of each estimator's gradient over K, relative to the exact one; a row per LSR."""
    lsrs = list(dict.fromkeys(row.lsr for row in rows))
    figure, grid = plt.subplots(len(lsrs), 2, figsize=(11, 4 * len(lsrs)), layout="constrained", squeeze=False)
    for (of_variance, of_bias), lsr in zip(grid, lsrs, strict=True):
        for name in dict.fromkeys(row.estimator for row in rows):
            own = [row for row in rows if (row.lsr, row.estimator) == (lsr, name) and row.variance > ZERO]
            counts, style = [row.num_candidates for row in own], "--" if name in (EXACT, REST) else "-"
            of_variance.semilogy(counts, [row.variance for row in own], style, label=LABELS.get(name, name))
            of_bias.plot(counts, [row.bias for row in own], style, label=LABELS.get(name, name))
        of_variance.set_ylabel("variance / |exact gradient|²")
        of_bias.set_ylabel("bias / |exact gradient|")
        of_bias.set_yscale("symlog", linthresh=1)
        for axes in (of_variance, of_bias):
            axes.set_xlabel("K")
            axes.set_title(f"{lsr} LSR")
    grid[0, 0].legend(fontsize=7)
    return figure


def convergence_figure(rows: Sequence[Convergence]) -> Figure:
    """Steps to a share of the optimum over N, both logarithmic, with slopes of N and N^2 to read them by."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in dict.fromkeys(row.learner for row in rows):
        steps = mean_steps(rows, name)
        axes.loglog(list(steps), list(steps.values()), "o-", label=name)
    sizes = np.array(sorted({row.num_items for row in rows}), dtype=float)
    for power in (1, 2):
        label = "N" if power == 1 else "N²"
        axes.loglog(sizes, 20 * (sizes / sizes[0]) ** power, "--", color="grey", linewidth=0.8, label=f"as {label}")
    axes.set_ylim(top=max(row.most for row in rows) * 2)
    axes.set_xlabel("items N")
    axes.set_ylabel(f"gradient steps to {SHARE:.0%} of the optimum")
    axes.set_title(f"Synthetic world, {CONTEXTS} contexts, batch {BATCH}")
    axes.legend(fontsize=8)
    return figure


def errors_figure(rows: Sequence[PaperError]) -> Figure:
    """Table 5's errors of whole sets over K, a panel per temperature."""
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    figure, panels = plt.subplots(1, len(temperatures), figsize=(11, 4), layout="constrained", sharey=True)
    for axes, temperature in zip(panels, temperatures, strict=True):
        own = [row for row in rows if row.temperature == temperature]
        for name in own[0].of_sets:
            axes.loglog([row.num_candidates for row in own], [row.of_sets[name] for row in own], "o-", label=name)
        axes.set_title(f"logits N(0, 1) / {temperature:g}")
        axes.set_xlabel("K")
    panels[0].set_ylabel("sum |pi - pi of draws| / K")
    panels[0].legend(fontsize=8)
    return figure
