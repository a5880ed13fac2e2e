"""Text end to end: a run on texts, its bundle, and a server's answers to texts that nobody ever wrote."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.features import Features, texts_of
from esr_trainer.towers import Tower
from esr_trainer.vocabularies import padded
from serving.errors import UnknownContextError
from serving.export import export
from serving.items import with_items
from serving.query import Query
from serving.retriever import Retriever
from tests.conftest import run_module

TOPICS = {
    "hiking": ("hiking boots", "mountain hikes", "trail hiking", "alpine trekking"),
    "cooking": ("noodle cooking", "cooked dinner", "kitchen recipes", "quick cooking tips"),
    "猫咪": ("可爱的猫咪", "猫咪睡觉", "小猫咪玩耍", "我家猫咪"),
    "篮球": ("篮球比赛", "打篮球", "职业篮球", "篮球明星"),
}
"""Topic -> texts that share a word, or characters, with it."""
CONTEXTS, ITEMS = 48, 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on contexts that are known by what they wrote and items that are known by their titles."""
    from esr_trainer.__main__ import command_line

    directory = tmp_path_factory.mktemp("text")
    for side, count in (("contexts", CONTEXTS), ("items", ITEMS)):
        rows = [f"{row},{text_of(row)} {row % 3},{row % 3}" for row in range(count)]
        (directory / f"{side}.csv").write_text("id,title,kind\n" + "\n".join(rows))
    rows = [
        f"{context},{item},{2.0 if topic_of(context) == topic_of(item) else 0.1}"
        for context in range(CONTEXTS)
        for item in range(ITEMS)
    ]
    (directory / "matrix.csv").write_text("user_id,video_id,watch_ratio\n" + "\n".join(rows))
    options = f"--data {directory}/matrix.csv --context-features {directory}/contexts.csv --text title"
    options += f" --item-features {directory}/items.csv --text-buckets 2048 --candidates 4 --experts 2 --steps 200"
    assert command_line([*options.split(), "--out", str(directory / "run")]) == 0
    return directory / "run"


def topic_of(row: int) -> int:
    return row % len(TOPICS)


def text_of(row: int) -> str:
    texts = list(TOPICS.values())[topic_of(row)]
    return texts[row // len(TOPICS) % len(texts)]


@pytest.fixture(scope="module")
def root(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    export(run, root)
    return root


@pytest.fixture(scope="module")
def retriever(root: Path) -> Retriever:
    return Retriever.open(root)


def served(retriever: Retriever, **features: str) -> np.ndarray:
    """The user tower's embedding of a request that gives features, (M, D)."""
    found = retriever.contexts.find(Query(features={name: [value] for name, value in features.items()}))
    return retriever.contexts.embed_found([found])[0]


def trained(tower: Tower, **features: str) -> np.ndarray:
    """The trained tower's embedding of a row without an id that has these features, (M, D)."""
    vocabularies = tower.features.vocabularies
    bags = {name: vocabularies[name].indices(texts_of(features.get(name))) for name in vocabularies}
    tower.features = Features(vocabularies, {name: padded([bag], max(1, len(bag))) for name, bag in bags.items()})
    with torch.no_grad():
        embedding: np.ndarray = tower(torch.tensor([0]))[0].numpy()
    return embedding


@pytest.mark.parametrize(
    "text", ["mountain hiking", "小猫咪 hiking", "\uff2d\uff2fUNTAIN", "x " * 400, "小猫咪在家打篮球"]
)
def test_a_text_is_embedded_as_the_trained_tower_would(text: str, run: Path, retriever: Retriever) -> None:
    policy = Checkpoint(run).policy()
    expected = trained(policy.context_tower, title=text, kind="1") / policy.temperature
    np.testing.assert_allclose(served(retriever, title=text, kind="1"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("topic", range(len(TOPICS)))
def test_a_text_that_nobody_wrote_is_answered_by_what_it_shares(topic: int, retriever: Retriever) -> None:
    new = ("go hikings", "how to cook noodles", "邻居的猫咪", "学习篮球")
    answers = [retriever.retrieve(Query(features={"title": [text]}, num_candidates=4)).item_ids for text in new]
    assert [topic_of(int(item)) for item in answers[topic]] == [topic] * 4


def test_texts_that_share_words_are_nearer_than_strangers(retriever: Retriever) -> None:
    one, alike, stranger = (served(retriever, title=text) for text in ("a hiking day", "hiking night", "篮球 day"))
    assert np.linalg.norm(one - alike) < 0.5 * np.linalg.norm(one - stranger)


def test_a_text_without_a_word_is_no_known_context(retriever: Retriever) -> None:
    with pytest.raises(UnknownContextError, match="none of the values"):
        retriever.retrieve(Query(features={"title": ["?!"]}, num_candidates=4))


def test_an_item_is_added_by_its_text(run: Path, root: Path, tmp_path: Path) -> None:
    long = "职业打篮球 of alpine cooks " * 9
    (tmp_path / "new.csv").write_text(f"id,title,kind\nnew,{long},1\n")
    assert with_items(root, tmp_path / "new.csv", None, 1, 0.95).name == "2"
    index = Retriever.open(root).bundle.index
    added = np.stack([index.reconstruct(np.array([ITEMS]), expert)[0] for expert in range(2)])
    expected = trained(Checkpoint(run).policy().item_tower, title=long, kind="1")
    np.testing.assert_allclose(added, expected, rtol=0, atol=1e-6)


def test_a_server_hashes_without_torch(root: Path) -> None:
    script = "import sys, serving.server, serving.contexts; assert 'torch' not in sys.modules"
    assert run_module("timeit", "-n1", "-r1", script).returncode == 0
