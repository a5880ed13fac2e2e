"""How a comparison is shown: tables for people, then a line for each verdict."""

from collections.abc import Sequence

from esr_trainer.command_line import show
from offline_eval.grids import Grid, rich_table
from offline_eval.intervals import CONFIDENCE, Estimate
from offline_eval.replay.comparison import Comparison
from offline_eval.verdict import Verdict


def show_comparison(found: Comparison) -> None:
    """Print everything, the verdicts last."""
    grids = [value_grid(found), lists_grid(found), serving_grid(found)]
    grids += [segments_grid(found)] if found.segmented_by else []
    for grid in (*grids, gates_grid(verdicts_by_name(found))):
        show(rich_table(grid))
    for judged, verdict in found.candidates:
        print(f"verdict: {verdict.decision} {judged.name}: {verdict.because}")
    print(how_sure(found))


def how_sure(found: Comparison) -> str:
    """What the differences' intervals are worth, and of several candidates the best."""
    count, level = len(found.candidates), percent(found.confidence)
    if count == 1:
        return f"interval of the difference: {level}, BCa bootstrap over {found.num_contexts} contexts"
    best, verdict = found.best
    return (
        f"best of {count}: {best.name} ({verdict.decision}); intervals of the differences: {level} each, corrected for "
        f"choosing among {count} (Bonferroni), BCa bootstrap over {found.num_contexts} contexts"
    )


def percent(confidence: float) -> str:
    """A confidence for people."""
    return f"{100 * confidence:.4g} %"


def between(estimate: Estimate) -> str:
    """An interval."""
    return f"{estimate.low:.4f} to {estimate.high:.4f}"


def signed(estimate: Estimate) -> str:
    """A difference's interval."""
    return f"{estimate.low:+.4f} to {estimate.high:+.4f}"


def value_grid(found: Comparison) -> Grid:
    """What each policy is worth."""
    level = f"{percent(found.confidence)} interval"
    columns = (
        "policy",
        "policy value",
        f"{percent(CONFIDENCE)} interval",
        f"minus {found.baseline}",
        level,
        "permuted",
    )
    rows = [("uniform", f"{found.uniform_policy_value:.4f}", "", "", "", "")]
    for judged in found.judged:
        value, difference, permuted = judged.policy_value, judged.difference, judged.permuted
        rows.append(
            (
                judged.name,
                f"{value.mean:.4f}",
                between(value),
                f"{difference.mean:+.4f}" if difference else "",
                signed(difference) if difference else "baseline",
                f"{permuted.mean:.4f}" if permuted else "",
            )
        )
    rows.append(("optimum", f"{found.optimal_policy_value:.4f}", "", "", "", ""))
    return Grid(f"expected reward over {found.num_contexts} contexts", columns, rows)


def lists_grid(found: Comparison) -> Grid:
    """What the candidate lists are like."""
    names = list(found.judged[0].measures)
    rows = [
        (judged.name, *("" if (value := judged.measures[name]) is None else f"{value:.4f}" for name in names))
        for judged in found.judged
    ]
    return Grid("candidate lists", ("policy", *(name.replace("_", " ") for name in names)), rows)


def serving_grid(found: Comparison) -> Grid:
    """What the candidates' bundles make of them."""
    columns = (
        "candidate",
        "bundle of",
        "served value",
        "minus trained",
        "positions moved",
        "recall@K",
        "logit given away",
    )
    rows = [
        (
            judged.name,
            f"{served.model_id}, {served.index_kind}",
            f"{served.policy_value.mean:.4f}",
            f"{served.skew.mean:+.4f}",
            f"{served.moved:.2%}",
            f"{served.recall:.4f}",
            "" if served.regret is None else f"{served.regret:.2g}",
        )
        for judged, _ in found.candidates
        if (served := judged.served)
    ]
    return Grid("what is served", columns, rows)


def segments_grid(found: Comparison) -> Grid:
    """What each policy is worth to each segment."""
    column, level = str(found.segmented_by), f"{percent(found.segment_confidence or CONFIDENCE)} interval"
    rows = [
        (
            judged.name,
            segment.value,
            str(segment.num_contexts),
            f"{segment.policy_value.mean:.4f}",
            between(segment.policy_value),
            f"{segment.difference.mean:+.4f}" if segment.difference else "",
            signed(segment.difference) if segment.difference else "baseline",
        )
        for judged in found.judged
        for segment in judged.segments
    ]
    columns = ("policy", column, "contexts", "policy value", level, f"minus {found.baseline}", level)
    return Grid(f"by {column}", columns, rows)


def verdicts_by_name(found: Comparison) -> list[tuple[str, Verdict]]:
    """Each candidate's verdict."""
    return [(judged.name, verdict) for judged, verdict in found.candidates]


def gates_grid(verdicts: Sequence[tuple[str, Verdict]]) -> Grid:
    """Every gate of every candidate."""
    rows = [
        (
            candidate,
            gate.name,
            f"{gate.value:.4g}",
            gate.rule,
            "met" if gate.passed else f"not met: {gate.failing_means}",
        )
        for candidate, verdict in verdicts
        for gate in verdict.gates
    ]
    return Grid("gates", ("candidate", "gate", "value", "must be", ""), rows)
