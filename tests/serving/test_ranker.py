"""The late-stage ranker that a bundle carries, from training to slots."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.environments import open_world
from esr_trainer.reward_model import LINKS, Link, RewardModel, from_bytes
from esr_trainer.system import system_of
from serving import Query, Retriever
from serving.export import export
from serving.export_ranker import check_ranks_alike, of_rows
from serving.query import Degradation
from tests.esr_trainer.test_onnx_ranker import by_ids

OPTIONS = "--environment synthetic --contexts 60 --items 80 --candidates 12 --slate 4 --experts 2 --steps 20 --seed 1"


def bundle_of(directory: Path, *lsr: object) -> tuple[Path, Path]:
    run, root = directory / "run", directory / "bundles"
    assert command_line([*OPTIONS.split(), "--out", str(run), *map(str, lsr)]) == 0
    export(run, root)
    return run, root


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return bundle_of(tmp_path_factory.mktemp("learned"), "--lsr", "learned", "--lsr-interactions", 20000)


def test_slots_hold_what_the_learned_ranker_would_show(learned: tuple[Path, Path]) -> None:
    run, root = learned
    checkpoint = Checkpoint(run)
    world = open_world("synthetic", None, 0, contexts=60, items=80)
    system = system_of(checkpoint.config, world, checkpoint.ranker())
    retriever = Retriever.open(root)
    row = {item: number for number, item in enumerate(world.item_ids)}
    slates = set()
    for context in range(60):
        answer = retriever.retrieve(Query(world.context_ids[context], 12, num_slots=4))
        items = torch.tensor([[row[item] for item in answer.item_ids]])
        scores = system.scores(torch.tensor([context]), items)[0]
        assert answer.slate == scores.sort(descending=True, stable=True).indices[:4].tolist()
        assert list(answer.slate_probabilities) == [1.0] * 4
        assert answer.degradations == []
        slates.add(tuple(answer.slate))
    assert len(slates) > 30, "the slate depends on the context"


def test_a_context_that_the_ranker_cannot_know_keeps_the_candidates_order(learned: tuple[Path, Path]) -> None:
    retriever = Retriever.open(learned[1], unknown_context="cold-start")
    answer = retriever.retrieve(Query("nobody", 12, num_slots=4))
    assert answer.slate == [0, 1, 2, 3]
    assert answer.degradations == [Degradation.COLD_START, Degradation.UNRANKED]
    assert retriever.retrieve(Query("5", 12, num_slots=4, allowed=["3"])).slate == [0]
    assert retriever.retrieve(Query("5", 12, num_slots=4, allowed=[])).slate == []


def test_a_users_ranker_is_served_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(by_ids())
    _, root = bundle_of(tmp_path, "--lsr", tmp_path / "mine.onnx")
    assert (root / "1" / "ranker.onnx").read_bytes() == by_ids()
    retriever = Retriever.open(root)
    answer = retriever.retrieve(Query("7", 80, num_slots=3))
    first = answer.item_ids.index("7")
    others = [position for position in range(80) if position != first]
    assert answer.slate == [first, *others[:2]], "the item of the context's own id, then the candidates' order"
    cold = Retriever.open(root, unknown_context="cold-start").retrieve(Query("81", 80, num_slots=1))
    assert cold.degradations == [Degradation.COLD_START], "it knows contexts by their ids"


def test_scores_come_out_as_torch_gives_them(learned: tuple[Path, Path]) -> None:
    run, root = learned
    file = Checkpoint(run).ranker()
    assert file is not None
    model, _ = from_bytes(file.content)
    ranker = Retriever.open(root).bundle.ranker
    assert ranker is not None
    with torch.no_grad():
        expected = model(torch.tensor([9]), torch.arange(80)[None])[0]
    assert ranker.scores("", 9, np.arange(80)) == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("link", LINKS)
def test_either_link_is_exported(link: Link, tmp_path: Path) -> None:
    model, draws = RewardModel(5, 7, link), torch.Generator().manual_seed(0)
    contexts, items = torch.tensor([4, 0, 2]), torch.tensor([6, 1, 1, 3])
    with torch.no_grad():
        for table in (model.contexts, model.items, model.level, model.scale):
            table.normal_(generator=draws)
        onnx.save(of_rows(model, contexts, items), tmp_path / "ranker.onnx")
        check_ranks_alike(tmp_path / "ranker.onnx", model, contexts, items, ("a", "b", "c", "d"))
        with pytest.raises(UsageError, match=r"scores of ranker\.onnx are not the learned ranker's"):
            check_ranks_alike(tmp_path / "ranker.onnx", model, contexts, items.flip(0), ("a", "b", "c", "d"))
