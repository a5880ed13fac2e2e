"""Plots of results, as files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from offline_eval.runtime import Timing
from offline_eval.summary import Row

mpl.use("Agg")


def plot_runtime(rows: Sequence[Timing], path: Path) -> None:
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
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_curves(rows: Sequence[Row], title: str, path: Path) -> None:
    """Policy value over steps: the mean over seeds in a band from the lowest to the highest seed, and the optimum."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for row in rows:
        whole = [result for result in row.results if not result.failure]
        if not whole:
            continue
        values = np.array([result.policy_value for result in whole])
        (line,) = axes.plot(whole[0].steps, values.mean(axis=0), label=row.label)
        axes.fill_between(whole[0].steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2)
    for optimum in {row.references["optimal"] for row in rows}:
        axes.axhline(optimum, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("gradient steps (dashed: the optimum)")
    axes.set_ylabel("policy value")
    axes.set_title(title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
