"""How a comparison is shown: tables for people, then a line for each verdict."""

from rich.table import Table

from esr_trainer.command_line import show
from offline_eval.comparison import Comparison
from offline_eval.intervals import CONFIDENCE, Estimate


def show_comparison(found: Comparison) -> None:
    """Print everything, the verdicts last."""
    show(value_table(found))
    show(lists_table(found))
    show(serving_table(found))
    if found.segmented_by:
        show(segments_table(found))
    show(gates_table(found))
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


def value_table(found: Comparison) -> Table:
    """What each policy is worth."""
    title = f"expected reward over {found.num_contexts} contexts"
    level = f"{percent(found.confidence)} interval"
    table = Table(
        "policy",
        "policy value",
        f"{percent(CONFIDENCE)} interval",
        f"minus {found.baseline}",
        level,
        "permuted",
        title=title,
    )
    table.add_row("uniform", f"{found.uniform_policy_value:.4f}", "", "", "", "")
    for judged in found.judged:
        value, difference, permuted = judged.policy_value, judged.difference, judged.permuted
        table.add_row(
            judged.name,
            f"{value.mean:.4f}",
            between(value),
            f"{difference.mean:+.4f}" if difference else "",
            signed(difference) if difference else "baseline",
            f"{permuted.mean:.4f}" if permuted else "",
        )
    table.add_row("optimum", f"{found.optimal_policy_value:.4f}", "", "", "", "")
    return table


def lists_table(found: Comparison) -> Table:
    """What the candidate lists are like."""
    names = list(found.judged[0].measures)
    table = Table("policy", *(name.replace("_", " ") for name in names), title="candidate lists")
    for judged in found.judged:
        values = (judged.measures[name] for name in names)
        table.add_row(judged.name, *("" if value is None else f"{value:.4f}" for value in values))
    return table


def serving_table(found: Comparison) -> Table:
    """What the candidates' bundles make of them."""
    table = Table(
        "candidate", "bundle of", "served value", "minus trained", "positions moved", "recall@K", "logit given away"
    )
    table.title = "what is served"
    for judged, _ in found.candidates:
        if served := judged.served:
            table.add_row(
                judged.name,
                f"{served.model_id}, {served.index_kind}",
                f"{served.policy_value.mean:.4f}",
                f"{served.skew.mean:+.4f}",
                f"{served.moved:.2%}",
                f"{served.recall:.4f}",
                "" if served.regret is None else f"{served.regret:.2g}",
            )
    return table


def segments_table(found: Comparison) -> Table:
    """What each policy is worth to each segment."""
    level = f"{percent(found.segment_confidence or CONFIDENCE)} interval"
    title = f"by {found.segmented_by}"
    table = Table(
        "policy",
        f"{found.segmented_by}",
        "contexts",
        "policy value",
        level,
        f"minus {found.baseline}",
        level,
        title=title,
    )
    for judged in found.judged:
        for segment in judged.segments:
            difference = segment.difference
            table.add_row(
                judged.name,
                segment.value,
                str(segment.num_contexts),
                f"{segment.policy_value.mean:.4f}",
                between(segment.policy_value),
                f"{difference.mean:+.4f}" if difference else "",
                signed(difference) if difference else "baseline",
            )
        table.add_section()
    return table


def gates_table(found: Comparison) -> Table:
    """Every gate of every candidate."""
    table = Table("candidate", "gate", "value", "must be", "", title="gates")
    for judged, verdict in found.candidates:
        for gate in verdict.gates:
            met = "met" if gate.passed else f"not met: {gate.failing_means}"
            table.add_row(judged.name, gate.name, f"{gate.value:.4g}", gate.rule, met)
    return table
