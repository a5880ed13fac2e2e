"""Plots of results, as files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from offline_eval.runtime import Timing

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
