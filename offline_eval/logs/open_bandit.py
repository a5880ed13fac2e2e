"""Open Bandit's two logs of one campaign: what the log of random items says of the policy that wrote the other."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from offline_eval.intervals import Estimate, sample_of, student_t
from offline_eval.logs.log_evaluation import Estimated, LogQuestion, evaluate
from offline_eval.logs.log_options import LogOptions
from offline_eval.logs.log_reader import read_rounds
from offline_eval.logs.target_policies import TargetPolicy

CAMPAIGNS = ("men", "women")


class BanditCheck(NamedTuple):
    """One campaign."""

    campaign: str
    logged: Estimate
    """What the bts policy earned, the mean of its own log (t)."""
    estimated: tuple[Estimated, ...]
    """What the random log says of it; the differences are to what random items earned."""


def check_campaign(root: Path, campaign: str) -> BanditCheck:
    """Estimate the bts policy from the random log.

    The bts propensities move over time, so that the policy is only known as its item share per position.

    Args:
        root: Open Bandit's folder, with {random,bts}/<campaign>/<campaign>.csv.
        campaign: one of CAMPAIGNS.

    Raises:
        UsageError: a log cannot be read.
    """
    logs = {name: str(root / name / campaign / f"{campaign}.csv") for name in ("random", "bts")}
    policy, clicks = share_policy(logs["bts"])
    found = evaluate(LogQuestion(logs["random"], options=LogOptions(estimators=("snips", "ips"))), [policy])
    return BanditCheck(campaign, student_t(sample_of(clicks)), found.judged[0].estimated)


def share_policy(log: str) -> tuple[TargetPolicy, np.ndarray]:
    """The policy that shows each item as often, by context, as a log did; and the log's rewards, (R,)."""
    pages = [(page.contexts, page.slate, page.rewards[:, 0]) for page in read_rounds(log)]
    contexts, items = (pl.concat(list(column)) for column in list(zip(*pages, strict=True))[:2])
    counted = pl.DataFrame({"context": contexts, "item": items}).group_by("context", "item").len()
    table = counted.pivot("item", index="context", values="len").fill_null(0)
    counts = table.drop("context").to_numpy().astype(np.float64)
    with np.errstate(divide="ignore"):  # an item that was never shown
        logits = np.log(counts / counts.sum(axis=1, keepdims=True))
    ids = tuple(table["context"].to_list()), tuple(table.columns[1:])
    policy = TargetPolicy("bts", *ids, 1, lambda rows: logits[rows][:, None])
    return policy, np.concatenate([rewards for *_, rewards in pages])
