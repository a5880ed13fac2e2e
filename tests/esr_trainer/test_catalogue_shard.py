"""A catalogue shared out among processes answers as in one piece."""

from typing import Any

import pytest

from esr_trainer.catalogue_shard import blocks_of
from esr_trainer.ranks import joined
from tests.conftest import last_json
from tests.esr_trainer.shard_checks import noise_sum
from tests.esr_trainer.test_sharding import as_only_process
from tests.torchrun import ended, torchrun


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What three processes found; their blocks are of 14, 14 and 13 items."""
    return last_json(ended(torchrun(3, "tests.esr_trainer.shard_checks"))[0])


def test_log_probabilities_and_gradients_are_those_of_one_process_in_float64(found: dict[str, Any]) -> None:
    errors = found["errors"]
    assert found["count"] == 3
    assert len(errors) == 7 * 2 * 3 + 1
    assert max(errors.values()) < 1e-12, errors


def test_what_is_greedy_is_so_over_all_items_and_the_first_of_equal_ones(found: dict[str, Any]) -> None:
    errors = found["of the greedy"]
    assert len(errors) == 3 * 2 * 2 * 3
    assert max(errors.values()) < 1e-12, errors


def test_draws_that_follow_heads_are_those_of_one_process(found: dict[str, Any]) -> None:
    errors = found["of heads"]
    assert len(errors) == 9
    assert max(errors.values()) < 1e-12, errors


def test_candidates_are_those_of_one_process(found: dict[str, Any]) -> None:
    same = found["same"]
    assert len(same) == 6
    assert all(same.values()), same


def test_tables_that_all_have_stay_the_same_bits_everywhere(found: dict[str, Any]) -> None:
    assert found["replicas"]


def test_noise_is_the_same_whatever_the_number_of_processes(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_only_process(monkeypatch)
    with joined("cpu") as alone:
        assert alone.count == 1
        assert noise_sum(alone) == found["noise"] != 0.0


@pytest.mark.parametrize(("count", "processes"), [(10, 3), (4, 2), (5, 4), (1, 3)])
def test_blocks_hold_every_row_once(count: int, processes: int) -> None:
    blocks = blocks_of(count, processes)
    assert [row for block in blocks for row in block] == list(range(count))
    assert len(blocks) == processes
    assert max(map(len, blocks)) == len(blocks[0])
