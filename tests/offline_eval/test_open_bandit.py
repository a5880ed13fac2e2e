"""Item shares of a log as a policy."""

from pathlib import Path

import numpy as np
import pytest

from offline_eval.logs.open_bandit import CAMPAIGNS, check_campaign, share_policy

LOG = "item_id,position,click,propensity_score\n" + "7,1,0,0.1\n7,1,1,0.2\n7,1,0,0.3\n8,1,1,0.4\n8,2,0,0.5\n"


def test_shares_are_counted_by_position(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    policy, clicks = share_policy(str(tmp_path / "log.csv"))
    table = np.exp(policy.logits(np.arange(2))[:, 0])
    place = {name: row for row, name in enumerate(policy.context_ids)}
    column = {name: row for row, name in enumerate(policy.item_ids)}
    assert table[place["1"], [column["7"], column["8"]]] == pytest.approx([0.75, 0.25])
    assert table[place["2"], [column["7"], column["8"]]] == pytest.approx([0, 1])
    assert clicks.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_random_log_agrees_with_what_bts_earned(campaign: str, shared: Path) -> None:
    found = check_campaign(shared / "data/open_bandit", campaign)
    for estimated in found.estimated:
        assert max(estimated.value.low, found.logged.low) < min(estimated.value.high, found.logged.high)
        assert estimated.overlap is not None
        assert estimated.overlap.effective_sample_size > 2500
        assert estimated.overlap.mean_weight.low < 1 < estimated.overlap.mean_weight.high
