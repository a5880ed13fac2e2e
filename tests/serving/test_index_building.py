from pathlib import Path

import numpy as np
import pytest

from esr_trainer.command_line import UsageError
from serving.index_building import (
    KindName,
    build_index,
    choose_kind,
    exact_index,
    measured,
    recall,
    tune,
    with_other_items,
)
from serving.selection import Selection

KINDS: tuple[KindName, ...] = ("flat", "ivf", "hnsw")


def draw(num_experts: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_experts, count, 8), dtype=np.float32)


def queries(num_experts: int, count: int = 60, seed: int = 1) -> np.ndarray:
    return draw(num_experts, count, seed).transpose(1, 0, 2)


def test_size_chooses_the_kind_unless_the_user_does() -> None:
    assert [choose_kind("auto", size) for size in (1, 100_000, 100_001)] == ["flat", "flat", "ivf"]
    assert [choose_kind(kind, 5) for kind in KINDS] == [*KINDS]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_chosen_effort_is_the_least_that_finds_enough(kind: KindName) -> None:
    built = tune(build_index(kind, draw(2, 4000, 0)), queries(2), 10, min_recall=0.95)
    exact = exact_index(built.embeddings).pick(queries(2), 10)

    def found(effort: int) -> float:
        return recall(built._replace(effort=effort).searching(10).pick(queries(2), 10), exact)

    assert found(built.effort) >= 0.98
    assert found(built.effort * 3 // 4) < 0.98
    harder = tune(built, queries(2), 10, min_recall=0.99)
    assert harder.effort > built.effort, "the wanted recall keeps above the least"


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_that_finds_too_little_is_refused(kind: KindName) -> None:
    built = build_index(kind, draw(1, 4000, 0))
    exact = exact_index(built.embeddings).pick(queries(1), 10)
    found = recall(built.searching(10).pick(queries(1), 10), exact)
    assert measured(built, queries(1), 10, found).recall == found
    with pytest.raises(UsageError, match=rf"index \({kind}\): recall@10 on the golden queries is {found:.4f}, below"):
        measured(built, queries(1), 10, found + 1e-6)


def test_recall_counts_items_whatever_their_order() -> None:
    right = exact_index(draw(1, 10, 0)).pick(queries(1, 2), 4)
    backwards = [picked._replace(rows=picked.rows[::-1]) for picked in right]
    half = [picked._replace(rows=np.array([*picked.rows[:2], 98, 99])) for picked in right]
    assert recall(backwards, right) == 1
    assert recall([right[0], half[1]], right) == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_other_items_give_the_index_of_the_new_catalogue(kind: KindName) -> None:
    embeddings, added = draw(2, 3000, 0), draw(2, 40, 5)
    kept = np.setdiff1d(np.arange(3000), [0, 7, 2999, *range(100, 180)])
    built = with_other_items(build_index(kind, embeddings), kept, added)
    catalogue = np.concatenate([embeddings[:, kept], added], axis=1)
    assert np.array_equal(built.embeddings, catalogue)
    most = 0 if kind == "flat" else built.most
    index = built._replace(effort=most).searching(10)
    for expert in range(2):
        assert np.array_equal(index.reconstruct(np.arange(len(catalogue[0])), expert), catalogue[expert])
    exact = exact_index(catalogue).pick(queries(2), 10)
    assert recall(index.pick(queries(2), 10), exact) > 0.99
    new = index.search_selected(queries(2)[:, 1], 1, 10, [Selection.of(allowed=range(len(kept), len(kept) + 40))] * 60)
    assert all(len(found.rows) == 10 and found.rows.min() >= len(kept) for found in new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_of_one_item_can_be_indexed(kind: KindName, tmp_path: Path) -> None:
    index = build_index(kind, draw(1, 1, 0)).searching(1)
    assert [picked.rows.tolist() for picked in index.pick(queries(1, 2), 3)] == [[0], [0]]


def test_an_embedding_that_is_no_number_is_refused() -> None:
    embeddings = draw(1, 10, 0)
    embeddings[0, 3, 2] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        build_index("flat", embeddings)
