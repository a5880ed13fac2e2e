from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from esr_trainer.command_line import UsageError
from esr_trainer.pairs import Described, Descriptions, describe
from esr_trainer.relevance_options import RelevanceOptions
from esr_trainer.relevance_oracles import LabelOracle, open_oracle
from esr_trainer.world import World

CONTEXTS, ITEMS = ("7", "8"), ("1", "2", "3")


@pytest.fixture
def world() -> World:
    reward = torch.tensor([[0.0, 0.5, 3.0], [1.0, 2.0, 0.1]])
    return World("synthetic", "for a test", CONTEXTS, ITEMS, reward, reward, torch.zeros(2, 3), "by hand")


@pytest.fixture
def descriptions(tmp_path: Path) -> Descriptions:
    (tmp_path / "items.csv").write_text('id,title,tags\n3,tea,"[hot, green]"\n1,cat,\n')
    return Descriptions(describe(CONTEXTS, None), describe(ITEMS, tmp_path / "items.csv"))


def test_rows_are_described_by_what_their_table_says(descriptions: Descriptions) -> None:
    assert descriptions.contexts == [Described("7", {}), Described("8", {})]
    assert descriptions.items == [
        Described("1", {"title": "cat"}),
        Described("2", {}),
        Described("3", {"title": "tea", "tags": "[hot, green]"}),
    ]


def test_labels_are_the_worlds_reward_capped_or_cut(world: World, descriptions: Descriptions) -> None:
    contexts, items = torch.tensor([1, 0]), torch.tensor([[0, 2], [1, 2]])
    capped = open_oracle(RelevanceOptions(), world, descriptions)
    torch.testing.assert_close(capped.relevance(contexts, items), torch.tensor([[1.0, 0.1], [0.5, 1.0]]))
    torch.testing.assert_close(capped.relevance(contexts, items[:, 1]), torch.tensor([0.1, 1.0]))
    cut = open_oracle(RelevanceOptions(relevant_above=0.5), world, descriptions)
    assert cut.relevance(contexts, items).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("wrong", [-0.1, 1.5, torch.nan])
def test_labels_must_be_relevance(wrong: float) -> None:
    with pytest.raises(UsageError, match="relevance must be from 0 to 1"):
        LabelOracle(torch.tensor([[0.5, wrong]]))


def function_file(path: Path, body: str) -> str:
    path.write_text(f"calls = []\ndef judge(pairs):\n    calls.append(len(pairs))\n    {body}\nlimit = 3\n")
    return f"{path}:judge"


def test_a_function_judges_each_pair_once(world: World, descriptions: Descriptions, tmp_path: Path) -> None:
    score = "int('tea' in pair.item.texts.values()) * int(pair.context.id) / 8"
    body = f"assert len(pairs) == 2; return [{score} for pair in pairs]"
    oracle = open_oracle(RelevanceOptions(oracle=function_file(tmp_path / "mine.py", body)), world, descriptions)
    found = oracle.relevance(torch.tensor([0, 0]), torch.tensor([[2, 0], [2, 2]]))
    assert found.tolist() == [[0.875, 0], [0.875, 0.875]]
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("return [0.5]", r"shape \(1,\) for 2 pairs"),
        ("return [0.5, float('nan')]", "gave nan: relevance must be from 0 to 1"),
        ("return [0.5, 2]", "gave 2: relevance must be from 0 to 1"),
        ("return ['yes', 'no']", "gave no list of numbers"),
    ],
)
def test_a_functions_answer_is_checked(
    body: str, rule: str, world: World, descriptions: Descriptions, tmp_path: Path
) -> None:
    oracle = open_oracle(RelevanceOptions(oracle=function_file(tmp_path / "mine.py", body)), world, descriptions)
    with pytest.raises(UsageError, match=rule):
        oracle.relevance(torch.tensor([0, 1]), torch.tensor([2, 0]))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("none.py:judge", "cannot be loaded: FileNotFoundError"),
        ("mine.py:other", "has no function other"),
        ("mine.py:limit", "has no function limit"),
        ("broken.py:judge", "cannot be loaded: SyntaxError"),
        ("ftp://host/judge", "must be labels, FILE.py:function, or an http, https, grpc or grpcs URL"),
        ("file:///etc/passwd", "must be labels, FILE.py:function, or an http, https, grpc or grpcs URL"),
        ("http://", "must be of http or https, and name a host"),
        ("http://me:secret@host/", r"oracle \(http://host\): a URL may hold no password"),
        ("http://host:port/", "cannot be parsed"),
    ],
)
def test_an_oracle_that_cannot_be_opened_is_one_line(
    name: str, rule: str, world: World, descriptions: Descriptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function_file(tmp_path / "mine.py", "return []")
    (tmp_path / "broken.py").write_text("def judge(:")
    with pytest.raises(UsageError, match=rule):
        open_oracle(RelevanceOptions(oracle=name), world, descriptions)


def test_options_are_checked() -> None:
    for wrong in ({"judge_budget": 0}, {"judge_seconds": 0}, {"judge_batch": 0}, {"relevant_above": float("nan")}):
        with pytest.raises(ValidationError):
            RelevanceOptions.model_validate(wrong)
