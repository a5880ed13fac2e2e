import threading
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.index import ItemIndex, quotas
from serving.index_building import KindName, build_index, exact_index, recall
from serving.selection import EVERYTHING, Selection

KINDS: tuple[KindName, ...] = ("flat", "ivf", "hnsw")


def embeddings(num_experts: int, num_items: int, dimension: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((num_experts, num_items, dimension), dtype=np.float32)


@cache
def built(kind: KindName) -> ItemIndex:
    """2 experts, 5,000 items, enough that an approximate index is asked."""
    return build_index(kind, embeddings(2, 5000, 8))._replace(effort=8).searching(10)


def brute_force(items: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray) -> list[int]:
    """By falling score, of equal scores the lower row; small integers, so that every sum is exact."""
    scores = items @ query
    return sorted(allowed.tolist(), key=lambda row: (-scores[row], row))[:k]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_exact_search_is_brute_force_whatever_the_batch_and_the_selection(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1 << 30))
    num_items, batch, k = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 450))
    generator = np.random.default_rng(seed)
    items = generator.integers(-2, 3, (num_items, 3)).astype(np.float32)  # many ties
    queries = generator.integers(-2, 3, (batch, 3)).astype(np.float32)
    selections = [EVERYTHING]
    for share in generator.random(batch - 1):
        chosen = np.flatnonzero(generator.random(num_items) < share)
        selections.append(Selection.of(excluded=chosen) if generator.random() < 0.5 else Selection.of(allowed=chosen))
    found = exact_index(items[None]).search_selected(queries, 0, k, selections)
    for query, selection, (rows, scores) in zip(queries, selections, found, strict=True):
        assert rows.tolist() == brute_force(items, query, k, selection.rows(num_items))
        assert scores.tolist() == (items[rows] @ query).tolist()
        assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("batch", [1, 9])
def test_allowed_items_that_hardly_outnumber_k_are_found_alone(batch: int) -> None:
    """258 items are looked through in 86 groups; three of the ten allowed share one, so fewer than k hold any."""
    items = np.arange(258, dtype=np.float32)[:, None]
    allowed = Selection.of(allowed=[0, 86, 172, 5, 6, 7, 8, 9, 10, 11])
    for rows, _ in exact_index(items[None]).search_selected(np.ones((batch, 1), np.float32), 0, 9, [allowed] * batch):
        assert rows.tolist() == [172, 86, 11, 10, 9, 8, 7, 6, 5]


def test_a_score_has_the_same_bits_in_any_company() -> None:
    index, queries = exact_index(embeddings(1, 3000, 64)), embeddings(1, 40, 64, seed=1)[0]
    together = index.search(queries, 0, 50)
    for count in (1, 2, 7, 8, 33):
        for start in range(0, 40 - count, 7):
            rows, scores = index.search(queries[start : start + count], 0, 50)
            assert np.array_equal(rows, together[0][start : start + count])
            assert np.array_equal(scores, together[1][start : start + count])
    few = Selection.of(allowed=together[0][3, ::5])
    assert np.array_equal(index.search_selected(queries[3:4], 0, 50, [few])[0].scores, together[1][3, ::5])


def test_search_in_chunks_is_search_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = exact_index(embeddings(1, 500, 8)), embeddings(1, 40, 8, seed=1)[0]
    selections = [Selection.of(excluded=range(query)) for query in range(40)]
    expected = [found.rows.tolist() for found in index.search_selected(queries, 0, 9, selections)]
    monkeypatch.setattr("serving.expert_index.CHUNK", 500 * 8)
    assert [found.rows.tolist() for found in index.search_selected(queries, 0, 9, selections)] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("allowed", "excluded"),
    [(None, 0), (None, 1), (None, 700), (None, 4995), (4000, 500), (2500, 0), (30, 8), (1, 0), (0, 0)],
)
def test_a_selection_still_gets_k(kind: KindName, allowed: int | None, excluded: int) -> None:
    index, generator = built(kind), np.random.default_rng(2)
    permuted = generator.permutation(5000)
    selection = Selection.of(None if allowed is None else permuted[:allowed], permuted[: 2 * excluded : 2])
    queries = embeddings(1, 9, 8, seed=3)[0]
    free = selection.rows(5000)
    for k in (1, 10, 1200):
        found = index.search_selected(queries, 1, k, [selection] * len(queries))
        for query, (rows, scores) in zip(queries, found, strict=True):
            assert len(rows) == len(set(rows.tolist())) == min(k, len(free))
            assert np.isin(rows, free).all()
            assert (np.diff(scores) <= 0).all()
            np.testing.assert_allclose(scores, embeddings(2, 5000, 8)[1, rows] @ query, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_can_be_asked_for(kind: KindName) -> None:
    rows, _ = built(kind).search(embeddings(1, 2, 8, seed=3)[0], 0, 5000)
    assert np.array_equal(np.sort(rows), np.tile(np.arange(5000), (2, 1)))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_more_effort_finds_more(kind: KindName) -> None:
    queries = embeddings(2, 50, 8, seed=3).transpose(1, 0, 2)
    exact = built("flat").pick(queries, 20)
    index = build_index(kind, embeddings(2, 5000, 8))
    little, much = (index._replace(effort=effort).searching(20).pick(queries, 20) for effort in (1, 200))
    assert recall(little, exact) < 0.9
    assert recall(much, exact) > 0.97


def test_a_larger_k_and_fewer_allowed_items_are_searched_harder() -> None:
    effort = built("ivf").experts[0].effort  # type: ignore[attr-defined]
    assert (effort.least, effort.of(10, 1), effort.of(1, 1)) == (8, 8, 8)
    assert effort.of(40, 1) == 16, "twice for four times as many"
    assert effort.of(10, 0.25) == 32
    assert effort.of(10, 1e-6) == effort.most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_candidates", [1, 2, 11])
def test_each_expert_takes_the_best_that_no_earlier_one_took(kind: KindName, num_candidates: int) -> None:
    items = embeddings(3, 300, 4, seed=5)  # few enough for an exact scan in every kind
    index = build_index(kind, items)._replace(effort=300 if kind == "hnsw" else 30).searching(11)
    queries = embeddings(3, 12, 4, seed=6).transpose(1, 0, 2)
    generator = np.random.default_rng(7)
    selections = [Selection.of(excluded=generator.permutation(300)[: 20 * query]) for query in range(12)]
    for picked, query, selection in zip(
        index.pick(queries, num_candidates, selections), queries, selections, strict=True
    ):
        taken: list[int] = []
        for expert, quota in enumerate(quotas(num_candidates, 3)):
            free = np.setdiff1d(selection.rows(300), taken)
            scores = items[expert] @ query[expert]
            taken += free[np.argsort(-scores[free])][:quota].tolist()
        assert picked.rows.tolist() == taken
        assert picked.experts.tolist() == np.repeat(range(3), quotas(num_candidates, 3)).tolist()


def test_picks_end_where_the_allowed_items_do() -> None:
    picked = built("flat").pick(embeddings(2, 1, 8).transpose(1, 0, 2), 10, [Selection.of(allowed=[5, 9, 5, 3])])[0]
    assert sorted(picked.rows.tolist()) == [3, 5, 9]
    assert picked.experts.tolist() == [0, 0, 0]
    none = built("flat").pick(embeddings(2, 1, 8).transpose(1, 0, 2), 10, [Selection.of(allowed=[])])[0]
    assert len(none.rows) == len(none.scores) == len(none.experts) == 0


def test_all_scores_are_for_exact_indexes() -> None:
    query = embeddings(1, 1, 8, seed=9)[0, 0]
    expected = embeddings(2, 5000, 8)[1] @ query
    np.testing.assert_allclose(built("flat").scores(query, 1), expected, rtol=0, atol=1e-5)
    assert [built(kind).is_exact for kind in KINDS] == [True, False, False]
    with pytest.raises(ValueError, match="need an exact index, not hnsw"):
        built("hnsw").scores(query, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_come_back(kind: KindName) -> None:
    rows = np.array([4999, 0, 17])
    assert np.array_equal(built(kind).reconstruct(rows, 1), embeddings(2, 5000, 8)[1, rows])


@pytest.mark.parametrize("k", [0, -1, 5001])
def test_k_is_checked(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k \({k}\) must be from 1 to the index's 5000 items"):
        built("flat").search(embeddings(1, 1, 8)[0], 0, k)


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_get_the_answers_of_one(kind: KindName) -> None:
    index, queries = built(kind), embeddings(2, 5, 8, seed=3).transpose(1, 0, 2)
    selections = [Selection.of(excluded=range(100 * query)) for query in range(5)]
    expected = [picked.rows.tolist() for picked in index.pick(queries, 20, selections)]
    wrong: list[int] = []

    def ask() -> None:
        for _ in range(10):
            answers = index.pick(queries, 20, selections)
            wrong.extend(picked.rows.tolist() != rows for picked, rows in zip(answers, expected, strict=True))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 6 * 10 * 5
    assert not any(wrong)
