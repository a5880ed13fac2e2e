"""What the runs of an experiment say together, as a grid."""

from collections.abc import Mapping, Sequence

from offline_eval.grids import Grid
from offline_eval.reproduce.summary import Mean, Row


def experiment_grid(rows: Sequence[Row], question: str, reference: Mapping[str, str | float]) -> Grid:
    """One line per row of a summary: policy values with standard errors, steps to 95 % and 99 %, paired difference."""
    steps = list(dict.fromkeys(step for row in rows for step in row.values))
    read = list(dict.fromkeys(name for row in rows for name in row.references if name != "initial"))
    against = [f"minus {' '.join(map(str, reference.values()))}, paired"] if reference else []
    lines = []
    for row in rows:
        seeds = f"{row.num_seeds}" + (f", {row.failures} failed" if row.failures else "")
        values = [with_error(row.values.get(step)) for step in steps]
        reached = ["" if step is None else f"{step:,.0f}" for step in row.steps_to.values()]
        difference = [signed(row.difference)] if reference else []
        lines.append(
            [row.label, seeds, *values, *reached, *difference, *(f"{row.references[name]:.3f}" for name in read)]
        )
    head = ["settings", "seeds", *(f"@{step:,}" for step in steps), "to 95 %", "to 99 %", *against, *read]
    return Grid(question, head, lines)


def with_error(value: Mean | None) -> str:
    """A policy value, with its standard error in brackets where there are several seeds."""
    if value is None:
        return ""
    return f"{value.mean:.3f}" + ("" if value.margin is None else f" ({value.margin:.3f})")


def signed(difference: Mean | None) -> str:
    """A difference with half its interval; a star where 0 lies outside."""
    if difference is None or difference.margin is None:
        return "" if difference is None else f"{difference.mean:+.3f}"
    star = " *" if abs(difference.mean) > difference.margin else ""
    return f"{difference.mean:+.3f} ± {difference.margin:.3f}{star}"
