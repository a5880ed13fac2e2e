"""Segments of contexts."""

from pathlib import Path

import numpy as np
import pytest

from esr_trainer.command_line import UsageError
from offline_eval.replay.segments import read_segments, value_segments


def test_contexts_are_in_the_segments_of_their_values(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text('id,city,tags\na,Ulm,"[1, 2]"\nb,Bonn,[1]\nd,Ulm,\n')
    ids = ("d", "c", "b", "a")  # c is in no row
    assert [(one.value, one.contexts.tolist()) for one in read_segments(path, "city", ids)] == [
        ("Bonn", [2]),
        ("Ulm", [0, 3]),
    ]
    assert [(one.value, one.contexts.tolist()) for one in read_segments(path, "tags", ids)] == [
        ("1", [2, 3]),
        ("2", [3]),
    ]


@pytest.mark.parametrize("column", ["age", "id"])
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, column: str) -> None:
    path = tmp_path / "users.csv"
    path.write_text("id,city\na,Ulm\n")
    with pytest.raises(UsageError, match=rf"by \({column}\) must be a column of the context features: city"):
        read_segments(path, column, ("a",))


def test_text_makes_no_segments(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("id,city,about\n" + "".join(f"{row},Ulm,user {row}\n" for row in range(501)))
    with pytest.raises(UsageError, match=r"by \(about\) must be a column of the context features: city"):
        read_segments(path, "about", tuple(map(str, range(501))))


def test_each_segment_has_its_own_mean_and_paired_difference(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("id,city\na,Ulm\nb,Bonn\nc,Ulm\n")
    segments = read_segments(path, "city", ("a", "b", "c"))
    values, differences = np.array([1.0, 5.0, 2.0]), np.array([0.5, -1.0, 0.5])
    bonn, ulm = value_segments(segments, values, differences, 0.95)
    assert (ulm.num_contexts, ulm.policy_value.mean, ulm.difference) == (2, 1.5, (0.5, 0.5, 0.5))
    assert (bonn.num_contexts, bonn.policy_value.mean, bonn.difference) == (1, 5.0, (-1.0, -1.0, -1.0))
    assert value_segments(segments, values, None, 0.95)[0].difference is None
    wide = value_segments(segments, values, differences, 0.999)[1].policy_value
    assert wide.high - wide.low >= ulm.policy_value.high - ulm.policy_value.low
