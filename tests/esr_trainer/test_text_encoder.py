"""A tiny encoder that transformers' own classes make: its vectors, a run on them, and what is served of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from esr_trainer import text_encoder
from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.text_encoder import encode
from serving.errors import UnknownContextError
from serving.export import export
from serving.items import with_items
from serving.query import Query
from serving.retriever import Retriever
from tests.esr_trainer.test_training import same_checkpoint

WORDS = ("hiking", "boots", "noodle", "kitchen", "cat", "asleep", "ball", "game")
TOPICS = 4
CONTEXTS, ITEMS = 32, 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with random weights, and its tokenizer of whole words, as transformers saves them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS) + 2, max_position_embeddings=8, initializer_range=1.0, **shape)
    BertModel(config).save_pretrained(folder)
    return folder


def title(row: int) -> str:
    """Two words of a row's topic, in one of two orders; an eighth of the rows has none."""
    topic = row % TOPICS
    words = list(WORDS[2 * topic : 2 * topic + 2])
    return "" if row % 8 == 7 else " ".join(words[:: -1 if row % 3 else 1])


@pytest.fixture(scope="module")
def options(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("texts")
    for side, count in (("contexts", CONTEXTS), ("items", ITEMS)):
        rows = [f"{row},{title(row)},{row % 3}" for row in range(count)]
        (directory / f"{side}.csv").write_text("id,title,kind\n" + "\n".join(rows))
    ratios = [f"{c},{i},{2.0 if c % TOPICS == i % TOPICS else 0.1}" for c in range(CONTEXTS) for i in range(ITEMS)]
    (directory / "matrix.csv").write_text("user_id,video_id,watch_ratio\n" + "\n".join(ratios))
    given = f"--data {directory}/matrix.csv --context-features {directory}/contexts.csv --text title --experts 2"
    given += f" --item-features {directory}/items.csv --text-encoder {encoder} --candidates 4 --checkpoint-every 50"
    return given.split()


@pytest.fixture(scope="module")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert command_line([*options, "--steps", "100", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def root(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    export(run, root)
    return root


def test_a_vector_is_the_mean_over_a_text_s_own_tokens(encoder: Path) -> None:
    """Whatever is encoded beside it, each text by itself and without padding; of length 1, cut where BERT ends."""
    texts = ["cat", "hiking boots noodle", " ".join(WORDS) + " cat cat", "cat asleep"]
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    found = encode(texts, str(encoder))
    for text, vector in zip(texts, found, strict=True):
        tokens = torch.tensor([tokenizer(text)["input_ids"][:8]])
        with torch.no_grad():
            mean = model(tokens).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), rtol=0, atol=1e-5)


def test_only_a_projection_of_the_vectors_learns(run: Path, encoder: Path) -> None:
    tower = Checkpoint(run).policy().context_tower
    vectors = tower.features.encoded["title"]
    texts = tower.features.vocabularies["title"].texts
    assert len(texts) == len(vectors) == len({title(row) for row in range(CONTEXTS)} - {""})
    np.testing.assert_allclose(vectors, encode(texts, str(encoder)), rtol=0, atol=1e-5)
    projection = tower.encoded["feature_1"].projection
    assert [name for name in dict(tower.named_parameters()) if "encoded" in name] == ["encoded.feature_1.projection"]
    torch.testing.assert_close(tower.weights()["title"], torch.from_numpy(vectors) @ projection)


def test_the_tower_reads_text_and_the_rest(run: Path) -> None:
    """A row's embedding by hand: the sum of its id's, its text's and its kind's rows; row 7 has no text."""
    tower = Checkpoint(run).policy().context_tower
    weights, features = tower.weights(), tower.features
    for row in (3, 7):
        places = [(name, index) for name, bags in features.bags.items() for index in bags[row] if index >= 0]
        expected = torch.stack([weights[name][index] for name, index in places]).sum(dim=0)
        for found in (tower(torch.tensor([row]))[0], tower()[row]):
            torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-5)
    assert features.bags["title"][7].tolist() == [-1]


def test_it_learns(run: Path) -> None:
    metrics = Checkpoint(run).description.metrics
    assert metrics["policy_value"] > metrics["initial_policy_value"] + 0.3


def test_going_on_and_publishing_need_no_encoder(
    options: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = tmp_path / "halves"
    assert command_line([*options, "--steps", "50", "--out", str(halves)]) == 0
    monkeypatch.setattr(text_encoder, "encode", None)
    assert command_line([*options, "--steps", "100", "--out", str(halves)]) == 0
    same_checkpoint(run, halves)
    export(halves, tmp_path / "bundles")


def test_what_is_served_is_what_was_trained(run: Path, root: Path) -> None:
    retriever, tower = Retriever.open(root), Checkpoint(run).policy().context_tower
    found = retriever.contexts.find(Query(features={"title": ["hiking boots"]}))
    place = tower.features.vocabularies["title"].indices(["hiking boots"])
    expected = tower.weights()["title"][place[0]].detach().numpy()
    np.testing.assert_allclose(retriever.contexts.embed_found([found])[0].ravel(), expected, rtol=0, atol=1e-6)
    with pytest.raises(UnknownContextError, match="none of the values"):
        retriever.retrieve(Query(features={"title": ["hiking hiking"]}, num_candidates=4))


def test_an_item_is_added_by_a_text_that_was_encoded(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.csv").write_text("id,title,kind\nnew,cat asleep,1\nother,nobody wrote this,1\n")
    assert with_items(root, tmp_path / "new.csv", None, 1, 0.95).name == "2"
    assert "feature title: 1 texts are not among those that were encoded" in capsys.readouterr().err
    index, tower = Retriever.open(root).bundle.index, Checkpoint(run).policy().item_tower
    vocabularies, weights = tower.features.vocabularies, tower.weights()
    kind = weights["kind"][vocabularies["kind"].indices(["1"])[0]]
    text = weights["title"][vocabularies["title"].indices(["cat asleep"])[0]]
    for row, expected in ((ITEMS, kind + text), (ITEMS + 1, kind)):
        added = np.stack([index.reconstruct(np.array([row]), expert)[0] for expert in range(2)])
        np.testing.assert_allclose(added.ravel(), expected.detach().numpy(), rtol=0, atol=1e-6)


def test_an_encoder_that_is_not_there_is_one_line(
    options: list[str], tmp_path: Path, refused: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = refused(command_line([*options, "--text-encoder", str(tmp_path / "none")]))
    assert "text_encoder" in line
    assert "cannot be loaded" in line
    line = refused(command_line(["--environment", "synthetic", "--text-encoder", "x"]))
    assert "text_encoder (x): no table of features has text; name columns by --text" in line
    line = refused(command_line([*options, "--catalogue", "sampled"]))
    assert "has a projection that every row shares" in line


def test_without_the_extra_it_is_one_line(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"needs transformers: pip install early-stage-retriever\[hf\]"):
        encode(["cat"], str(encoder))
