"""A catalogue shared out among processes answers as in one piece."""

from typing import Any

import pytest

from esr_trainer.catalogue_shard import blocks_of
from tests.conftest import last_json
from tests.torchrun import ended, torchrun

COUNTS = (2, 3)


@pytest.fixture(scope="module")
def found() -> dict[int, dict[str, Any]]:
    """What each number of processes found."""
    launched = {count: torchrun(count, "tests.esr_trainer.shard_checks") for count in COUNTS}
    return {count: last_json(ended(process)[0]) for count, process in launched.items()}


@pytest.mark.parametrize("count", COUNTS)
def test_log_probabilities_and_gradients_are_those_of_one_process_in_float64(
    count: int, found: dict[int, dict[str, Any]]
) -> None:
    errors = found[count]["errors"]
    assert found[count]["count"] == count
    assert len(errors) == 7 * 2 * 3 + 1
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_greedy_is_so_over_all_items_and_the_first_of_equal_ones(
    count: int, found: dict[int, dict[str, Any]]
) -> None:
    errors = found[count]["of the greedy"]
    assert len(errors) == 3 * 2 * 2 * 3
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize("count", COUNTS)
def test_draws_that_follow_heads_are_those_of_one_process(count: int, found: dict[int, dict[str, Any]]) -> None:
    errors = found[count]["of heads"]
    assert len(errors) == 9
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize("count", COUNTS)
def test_candidates_are_those_of_one_process(count: int, found: dict[int, dict[str, Any]]) -> None:
    same = found[count]["same"]
    assert len(same) == 6
    assert all(same.values()), same


@pytest.mark.parametrize("count", COUNTS)
def test_tables_that_all_have_stay_the_same_bits_everywhere(count: int, found: dict[int, dict[str, Any]]) -> None:
    assert found[count]["replicas"]


def test_noise_is_the_same_whatever_the_number_of_processes(found: dict[int, dict[str, Any]]) -> None:
    noise = {answer["noise"] for answer in found.values()}
    assert len(noise) == 1
    assert noise != {0.0}


@pytest.mark.parametrize(("count", "processes"), [(10, 3), (4, 2), (5, 4), (1, 3)])
def test_blocks_hold_every_row_once(count: int, processes: int) -> None:
    blocks = blocks_of(count, processes)
    assert [row for block in blocks for row in block] == list(range(count))
    assert len(blocks) == processes
    assert max(map(len, blocks)) == len(blocks[0])
