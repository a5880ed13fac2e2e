import math
from itertools import permutations
from pathlib import Path

import pytest
import torch

from esr_trainer.command_line import main
from esr_trainer.estimators import ESTIMATORS
from offline_eval.__main__ import OfflineEval
from offline_eval.reproduce.inclusion_error import drawn_inclusion, errors_of
from tests.conftest import last_json


def test_draws_tell_the_softmax_exactly_where_one_item_is_drawn() -> None:
    logits = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64)
    torch.testing.assert_close(drawn_inclusion(logits, 1, 500), logits[0, 0].softmax(dim=0))


@pytest.mark.parametrize("num_experts", [1, 2])
def test_draws_tell_what_enumeration_says(num_experts: int) -> None:
    logits = torch.randn((1, num_experts, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sets = torch.tensor(list(permutations(range(5), 3)))
    chance = ESTIMATORS["v"](logits.expand(len(sets), -1, -1), sets[:, :1], sets)[:, 0].exp()
    exact = torch.zeros(5, dtype=torch.float64).index_add_(0, sets.flatten(), chance.repeat_interleave(3))
    assert float((drawn_inclusion(logits, 3, 20_000) - exact).abs().sum()) < 0.02


def test_the_error_is_relative_to_k() -> None:
    logits = torch.zeros((1, 1, 4), dtype=torch.float64)  # everybody is in with probability 1 / 2
    errors = errors_of(logits, 2, torch.tensor([0.7, 0.5, 0.5, 0.3], dtype=torch.float64))
    assert errors["ca-poisson"] == pytest.approx(0.4 / 2)


def test_the_command_prints_and_writes_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inclusion", "--draws", "500", "--items", "120", "--out", str(tmp_path), "--json"]
    assert main(OfflineEval, "python -m offline_eval", arguments) == 0
    rows = last_json(capsys.readouterr().out)["rows"]
    assert len(rows) == 42
    assert all(math.isfinite(error) for row in rows for error in row["errors"].values())
    assert (tmp_path / "inclusion.json").is_file()
