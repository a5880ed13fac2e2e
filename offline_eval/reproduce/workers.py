"""Workers: cells in processes of one thread each, which end with whoever started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path

from esr_trainer.interruption import stop_requested
from offline_eval.reproduce.cells import Cell, CellResult, run_cell

POLL = 0.2
"""Seconds between two looks at whether to stop."""


def run_cells(cells: Sequence[Cell], workers: int, unfinished: Path) -> Iterator[CellResult]:
    """Run cells in worker processes; each result as soon as it is there. Ctrl-C or SIGTERM ends it early.

    Args:
        cells: what to run.
        workers: processes.
        unfinished: the folder where cells keep how far they have come.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    with stop_requested() as stop:
        waiting: set[Future[CellResult]] = {pool.submit(run_cell, cell, unfinished) for cell in cells}
        try:
            while waiting and not stop():
                done, waiting = wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            if waiting:  # stopped, or one of them failed: what runs now would go on for as long as a cell takes
                for process in multiprocessing.active_children():
                    process.terminate()
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Have this process end as soon as the one that started it has, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent answers it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=exit_after, args=(parent.sentinel,), daemon=True).start()


def exit_after(sentinel: int) -> None:
    """End this process when another's sentinel says that it is gone."""
    wait_for_any([sentinel])
    os._exit(1)
