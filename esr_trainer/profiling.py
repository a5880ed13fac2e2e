"""A profile of some training steps: a trace for chrome://tracing or Perfetto, and a table of what costs most."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from esr_trainer.command_line import note
from esr_trainer.learner import Learner
from esr_trainer.run import Report

TRACE = "trace.json"

SKIPPED = 10
"""Steps before the profile: first calls allocate and choose kernels."""

PROFILED = 10
"""Steps in the profile."""

ROWS = 15
"""Operations in the table."""


@contextmanager
def profiled(run: Path) -> Iterator[Callable[[], None]]:
    """Within the block the value is called after every step; PROFILED steps after SKIPPED are written to the run.

    What is profiled computes the same as without: the profiler only watches.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=SKIPPED - 1, warmup=1, active=PROFILED, repeat=1)
    written = False

    def write(profiler: profile) -> None:
        nonlocal written
        if not (written := profiler.step_num > SKIPPED):  # the run ended before a profiled step did
            return
        profiler.export_chrome_trace(str(run / TRACE))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=ROWS), file=sys.stderr)
        note(f"profile: {run / TRACE}, for chrome://tracing or ui.perfetto.dev")

    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        note(f"profile: nothing written, it needs more than {SKIPPED} steps")


def each_step(step_done: Callable[[], None], first: Learner, report: Report) -> Report:
    """`report`, and `step_done` once per step of the first of the runs that step together."""

    def both(trainer: Learner) -> None:
        report(trainer)
        if trainer is first:
            step_done()

    return both
