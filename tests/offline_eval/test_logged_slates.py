"""Slates of a plain table, as rounds."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from esr_trainer.command_line import UsageError
from offline_eval.logs.log_reader import kind_of, read_rounds
from offline_eval.logs.logged_rounds import LoggedRounds

HEAD = "round_id,slot,context_id,item_id,reward,propensity"
SLATES = f"""{HEAD}
r1,1,u,a,1,0.5
r1,2,u,b,0,0.25
r2,1,v,b,0.5,1
r3,1,u,c,2,0.5
r3,2,u,a,0,0.5
r3,3,u,b,3,0.125
"""


def written(path: Path, text: str = SLATES) -> str:
    path.write_text(text)
    return str(path)


def test_a_round_is_its_slots_side_by_side(tmp_path: Path) -> None:
    log = written(tmp_path / "slates.csv")
    first, last = read_rounds(log)  # nothing but the file's end tells that the last round is whole
    assert kind_of(log) == "slates"
    assert first.contexts.to_list() == ["u", "v"]
    assert first.slate.to_list() == ["a", "b", "b", None]
    assert first.rewards.tolist() == [[1, 0], [0.5, 0]]
    assert first.log_propensities == pytest.approx(np.log([[0.5, 0.25], [1, 1]]))
    assert first.shown.tolist() == [[True, True], [True, False]]
    assert first.log_marginals is None
    assert last.slate.to_list() == ["c", "a", "b"]
    assert last.rewards.tolist() == [[2, 0, 3]]


def rounds_of(pages: list[LoggedRounds]) -> list[tuple[str, list[str], list[float]]]:
    return [
        (context, [item for item in slate if item is not None], rewards[:num].tolist())
        for page in pages
        for context, slate, rewards, num in zip(
            page.contexts,
            page.slate.to_numpy().reshape(page.rewards.shape).tolist(),
            page.rewards,
            page.shown.sum(axis=1),
            strict=True,
        )
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_round_may_go_on_on_the_next_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = rounds_of(list(read_rounds(written(tmp_path / "slates.csv"))))
    monkeypatch.setattr("offline_eval.logs.logged_tables.PAGE", size)
    pl.read_csv(SLATES.encode()).write_parquet(tmp_path / "slates.parquet", row_group_size=size)
    for name in ("slates.csv", "slates.parquet"):
        assert rounds_of(list(read_rounds(str(tmp_path / name)))) == whole
    assert [context for context, _, _ in whole] == ["u", "v", "u"]


def test_the_chance_of_a_slot_alone_is_read_where_it_is_told(tmp_path: Path) -> None:
    log = written(tmp_path / "slates.csv", f"{HEAD},slot_propensity\nr,1,u,a,1,0.5,0.5\nr,2,u,b,0,0.25,0.75\n")
    (page,) = read_rounds(log)
    assert kind_of(log) == "marginal-slates"
    assert page.log_marginals == pytest.approx(np.log([[0.5, 0.75]]))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("r1,2,u,b", "r1,3,u,b", "row 2 has slot 3; it must be 2, the next"),
        ("r2,1,v", "r2,0.5,v", "row 3 has slot 0.5; it must be 1, the next"),
        ("r3,2,u", "r3,2,w", "row 5 has context_id w; it must be u, the round's"),
        ("r3,3,u,b,3,0.125", "r3,3,u,b,3,0", "row 6 has propensity 0.0; it must be above 0"),
        ("r1,2,u", ",2,u", "row 2 has round_id None; it must be there"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str
) -> None:
    assert old in SLATES
    for size in (100, 2):
        monkeypatch.setattr("offline_eval.logs.logged_tables.PAGE", size)
        with pytest.raises(UsageError) as error:
            list(read_rounds(written(tmp_path / "slates.csv", SLATES.replace(old, new))))
        assert said in str(error.value)
