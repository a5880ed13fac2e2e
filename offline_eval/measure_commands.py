"""`python -m offline_eval runtime` and `inclusion`: what is measured without learning anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from pydantic_settings import CliToggleFlag
from rich.table import Table

from esr_trainer.command_line import Command, UsageError, show
from esr_trainer.config import DeviceName


class Runtime(Command):
    """Time a training step against its floor, the kernels that no implementation can leave out, on one thread.

    Prints milliseconds (the median of many steps, all estimators in turn) and the multiple of the floor; writes
    runtime.json and runtime.png. With --scale the full catalogue and a sampled one, over the number of items; writes
    scale.json and scale.png, with what a step attains of this machine's largest product and copy, measured beside it.
    """

    out: Path = Path("offline_eval/results")
    """Directory of the results."""
    repeats: PositiveInt = 50
    """Timed steps of each row."""
    large: bool = True
    """Time 10,000 and 100,000 items too."""
    scale: CliToggleFlag[bool] = False
    """Time steps over the size of the catalogue, full and sampled in turn, and measure their memory."""
    sizes: tuple[PositiveInt, ...] = (10_000, 100_000, 1_000_000)
    """N of --scale."""
    device: DeviceName = "cpu"
    """Where the steps of --scale are taken."""

    def run(self) -> Mapping[str, Any]:
        """Measure, print, write."""
        import json
        import os

        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        from rich.console import Console
        from rich.progress import track

        from offline_eval.provenance import provenance
        from offline_eval.reproduce.plots import endings, runtime_figure, save
        from offline_eval.reproduce.runtime import whole_runtime

        torch.set_num_threads(1)
        if self.scale:
            return self.run_scale()
        if self.device != "cpu":
            raise UsageError(f"device ({self.device}) is for --scale")
        rows = list(track(whole_runtime(self.repeats, self.large), "timing", console=Console(stderr=True)))
        names = list(dict.fromkeys(row.estimator for row in rows))
        table = Table("items", "K, L, M", "floor ms", *names, title="ms per training step (multiple of the floor)")
        for start in range(0, len(rows), len(names)):
            group = rows[start : start + len(names)]
            shape = f"{group[0].num_candidates}, {group[0].num_slots}, {group[0].num_experts}"
            cells = [f"{row.milliseconds:.2f} ({row.multiple:.1f})" for row in group]
            table.add_row(f"{group[0].num_items:,}", shape, f"{group[0].floor_milliseconds:.2f}", *cells)
        show(table)
        result = {**provenance("python -m offline_eval runtime"), "rows": [row._asdict() for row in rows]}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "runtime.json").write_text(json.dumps(result, indent=1))
        save(runtime_figure(rows), self.out / "runtime", endings(False))
        print(f"written: {self.out / 'runtime.json'}, {self.out / 'runtime.png'}")
        return result

    def run_scale(self) -> Mapping[str, Any]:
        """Measure, print, write, over the size of the catalogue."""
        import json

        from rich.console import Console
        from rich.progress import track

        from esr_trainer.preparation import check_device_and_files
        from offline_eval.grids import rich_table
        from offline_eval.provenance import provenance
        from offline_eval.reproduce.attained import measure_peaks
        from offline_eval.reproduce.plots import endings, save, scale_figure
        from offline_eval.reproduce.scale import KINDS, scale_grid, scale_timings, settings

        check_device_and_files(settings("full", max(self.sizes), device=self.device))
        peaks = measure_peaks(self.device)
        timed = scale_timings(self.sizes, self.repeats, self.device, peaks)
        count = len(KINDS[self.device]) * len(self.sizes)
        rows = list(track(timed, "timing", count, console=Console(stderr=True)))
        show(rich_table(scale_grid(rows, peaks)))
        sizes = ",".join(map(str, self.sizes))
        how = f"--sizes {sizes} --repeats {self.repeats} --device {self.device}"
        result = {
            **provenance(f"python -m offline_eval runtime --scale {how}"),
            "peaks": peaks._asdict(),
            "rows": [row._asdict() for row in rows],
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "scale.json").write_text(json.dumps(result, indent=1))
        save(scale_figure(rows), self.out / "scale", endings(False))
        print(f"written: {self.out / 'scale.json'}, {self.out / 'scale.png'}")
        return result


class Inclusion(Command):
    """Compare the inclusion probabilities of the CA family with draws, for small and large quotas and sharp logits.

    Prints the relative error sum_a |pi(a) - pi of the draws| / K; writes inclusion.json.
    """

    draws: Annotated[int, Field(ge=500)] = 20_000
    """Candidate sets per row, in whole chunks of 500."""
    items: PositiveInt = 1000
    """N."""
    out: Path = Path("offline_eval/results")
    """Directory of the result."""

    def run(self) -> Mapping[str, Any]:
        """Draw, print, write."""
        import json

        from rich.console import Console
        from rich.progress import track

        from offline_eval.provenance import provenance
        from offline_eval.reproduce.inclusion_error import EXPERTS, NAMES, QUOTAS, TEMPERATURES, inclusion_errors

        count = len(TEMPERATURES) * len(EXPERTS) * len(QUOTAS)
        rows = list(track(inclusion_errors(self.items, self.draws), "drawing", count, console=Console(stderr=True)))
        table = Table("temperature", "M", "K_m", *NAMES, title="error of inclusion probabilities, % of K")
        for row in rows:
            errors = [f"{100 * row.errors[name]:.2f}" for name in NAMES]
            table.add_row(f"{row.temperature:g}", str(row.num_experts), str(row.quota), *errors)
        show(table)
        command = f"python -m offline_eval inclusion --draws {self.draws} --items {self.items}"
        result = {**provenance(command), "rows": [row._asdict() for row in rows]}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "inclusion.json").write_text(json.dumps(result, indent=1))
        print(f"written: {self.out / 'inclusion.json'}")
        return result
