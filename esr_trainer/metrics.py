"""The metrics of a run: a JSON line and a TensorBoard event per evaluation."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

METRICS: Mapping[str, str] = {
    "policy_value": "expected reward per context of greedy ESR then LSR, on all contexts",
    "best_policy_value": "the highest policy value so far",
    "held_out_recall": "from a log: share of the held-out rewards, each by its inverse propensity, whose item is among "
    "the greedy candidates",
    "held_out_log_loss": "from a log: mean of -log p(a | x) over the same",
    "ips_value": "from a log: expected reward per impression of greedy ESR then LSR, by inverse propensities",
    "loss": "-mean_b sum_l w_l r_bl log p_bl of the step's batch, less the entropy bonus; a trend or a jump says more "
    "than its level",
    "gradient_norm": "Euclidean norm of the step's gradient over all tables",
    "effective_items": "exp of the softmax's entropy, mean over contexts and experts: N is uniform, 1 is one item",
    "steps_per_second": "gradient steps per second since the last evaluation, evaluations and checkpoints included",
}
"""What is written, and what it means."""


class Metrics(Protocol):
    """Where the metrics of a run go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """An evaluation."""

    def close(self) -> None:
        """The last was written."""


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard's events in a run directory."""

    def __init__(self, run: Path, step: int) -> None:
        """Go on at `step`: lines beyond it, from before a kill, are dropped."""
        self.path = run / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        temporary = run / "metrics.jsonl.tmp"
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)
        self.events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        self.last = (step, time.perf_counter())

    def _lines(self) -> list[str]:
        """The whole lines that are there; the last may have been cut off by a kill."""
        text = self.path.read_text() if self.path.is_file() else ""
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write METRICS of a step; `values` may hold more."""
        now = time.perf_counter()
        speed = {"steps_per_second": (step - self.last[0]) / (now - self.last[1])}
        self.last = (step, now)
        row = {name: value for name, value in {**values, **speed}.items() if name in METRICS}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        for name, value in row.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        self.events.close()
