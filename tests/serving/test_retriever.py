"""What a query may ask, against brute force over the bundle's own vectors."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esr_trainer.inclusion import log_inclusion_probabilities
from esr_trainer.policy import greedy_candidates
from esr_trainer.quotas import expert_of_position
from serving import Answer, Query, Retriever
from serving.errors import InvalidRequestError, UnknownContextError, UnsupportedError
from serving.query import Degradation


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> Retriever:
    return Retriever.open(bundles)


def logits_of(retriever: Retriever, embedding: np.ndarray) -> np.ndarray:
    index = retriever.bundle.index
    return np.stack([index.scores(vector, expert) for expert, vector in enumerate(embedding)])


def brute_force(logits: np.ndarray, rows: np.ndarray, k: int) -> list[int]:
    """Greedy candidates among some rows, by the trainer's own rule."""
    among = torch.from_numpy(logits[:, rows])[None]
    return rows[greedy_candidates(among, min(k, len(rows)))[0].numpy()].tolist()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_exclusions_and_allow_lists_still_give_k(retriever: Retriever, data: st.DataObject) -> None:
    names = retriever.bundle.item_ids
    some = st.lists(st.integers(0, len(names) - 1), max_size=40, unique=True)
    best = retriever.retrieve("17", 40).item_ids
    excluded = [*data.draw(st.lists(st.sampled_from(best), unique=True)), *(names[i] for i in data.draw(some)), "none"]
    allowed = data.draw(st.none() | st.lists(st.sampled_from(names), max_size=60, unique=True))
    k = data.draw(st.integers(1, 30))

    answer = retriever.retrieve(Query("17", k, excluded=excluded, allowed=allowed))

    may = [row for row, name in enumerate(names) if name not in excluded and (allowed is None or name in allowed)]
    logits = logits_of(retriever, retriever.contexts.embed(np.array([17]))[0])
    expected = brute_force(logits, np.array(may, dtype=np.int64), k)
    assert answer.item_ids == [names[row] for row in expected]
    experts = expert_of_position(len(expected), 3)
    assert answer.experts == experts
    scores = [float(logits[m, row]) for m, row in zip(experts, expected, strict=True)]
    assert answer.scores == pytest.approx(scores, abs=1e-5)


def test_a_draw_has_its_probabilities_and_its_seed(retriever: Retriever) -> None:
    query = Query("5", 12, seed=7)
    answer = retriever.retrieve(query)
    assert answer == retriever.retrieve(query)
    others = [retriever.retrieve(query._replace(seed=seed)).item_ids for seed in range(20)]
    assert len({tuple(items) for items in others}) == 20
    logits = torch.from_numpy(logits_of(retriever, retriever.contexts.embed(np.array([5]))[0]))[None].double()
    pi = log_inclusion_probabilities(logits, 12)[0].exp()
    row = {name: number for number, name in enumerate(retriever.bundle.item_ids)}
    rows = [row[item] for item in answer.item_ids]
    assert list(answer.inclusion_propensities) == pytest.approx(pi[rows].tolist(), abs=1e-6)
    assert answer.log_probability < 0
    assert retriever.retrieve(query._replace(seed=None)).log_probability == 0.0


def test_a_draw_among_allowed_items_is_theirs_alone(retriever: Retriever) -> None:
    allowed = retriever.bundle.item_ids[100:120]
    answer = retriever.retrieve(Query("5", 8, allowed=allowed, seed=1))
    assert set(answer.item_ids) <= set(allowed)
    everything = retriever.retrieve(Query("5", 50, allowed=allowed, seed=1))
    assert sorted(everything.item_ids) == sorted(allowed)
    assert set(everything.inclusion_propensities) == {1.0}
    nothing = retriever.retrieve(Query("5", 8, allowed=[], seed=1))
    assert nothing.item_ids == []


def test_propensities_of_draws_sum_to_the_catalogue(retriever: Retriever) -> None:
    """E[ sum over candidates of 1/pi ] = N: what importance weighting relies on."""
    totals = []
    for context in ("5", "17", "400"):
        for seed in range(300):
            pi = np.array(retriever.retrieve(Query(context, 200, seed=seed)).inclusion_propensities)
            totals.append((1 / pi).sum())
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - 1000) < 4 * error
    assert error < 50


def test_an_embedding_answers_as_its_context_does(retriever: Retriever) -> None:
    embedding = retriever.contexts.embed(np.array([17])).reshape(-1)
    assert retriever.retrieve(Query(embedding=embedding, num_candidates=9)) == retriever.retrieve("17", 9)


def test_the_largest_embedding_still_has_finite_scores(retriever: Retriever) -> None:
    embedding = np.full(30, 1e12, np.float32)
    for seed in (None, 1):
        answer = retriever.retrieve(Query(embedding=embedding, num_candidates=9, seed=seed))
        assert len(answer.item_ids) == 9
        assert np.isfinite(answer.scores).all()
        assert all(0 < pi <= 1 for pi in answer.inclusion_propensities)


def test_an_unknown_context_gets_the_average_where_that_is_wanted(bundles: Path, retriever: Retriever) -> None:
    with pytest.raises(UnknownContextError, match=r"context_id \(nobody\) is not among the model's contexts"):
        retriever.retrieve("nobody", 3)
    cold = Retriever.open(bundles, unknown_context="cold-start")
    answer = cold.retrieve("nobody", 5)
    assert answer.degradations == [Degradation.COLD_START]
    average = cold.contexts.embed(np.arange(1000)).mean(axis=0)
    assert answer.item_ids == cold.retrieve(Query(embedding=average.reshape(-1), num_candidates=5)).item_ids
    assert cold.retrieve("17", 5).degradations == []


def test_queries_of_a_group_are_answered_as_each_alone(retriever: Retriever) -> None:
    queries = [
        Query("5", 10),
        Query("nobody", 10),
        Query("17", 3),
        Query("5", 10, excluded=["1", "2"]),
        Query("17", 0),
        Query("9", 10, seed=4),
        Query("999", 10),
    ]
    together = retriever.answer(queries)
    assert [isinstance(answer, Answer) for answer in together] == [True, False, True, True, False, True, True]
    for query, answer in zip(queries, together, strict=True):
        (alone,) = retriever.answer([query])
        if isinstance(answer, Answer):
            assert isinstance(alone, Answer)
            assert answer.item_ids == alone.item_ids
            assert answer.scores == pytest.approx(alone.scores, abs=1e-5)
        else:
            assert str(answer) == str(alone)
    assert retriever.answer([]) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("5", 0), "num_candidates (0) must be from 1 to the model's 1000 items"),
        (Query("5", 1001), "num_candidates (1001) must be from 1 to the model's 1000 items"),
        (Query("", 5), "context (0 given) must be exactly one of context_id, features, embedding"),
        (Query("5", 5, embedding=np.zeros(30, np.float32)), "context (2 given) must be exactly one of"),
        (Query(embedding=np.zeros(29, np.float32)), "embedding (29 values) must have M * D = 30"),
        (
            Query(embedding=np.full(30, np.nan, np.float32)),
            "embedding (nan) must be finite, no number larger than 1e+12",
        ),
        (
            Query(embedding=np.full(30, 3e38, np.float32)),
            "embedding (3e+38) must be finite, no number larger than 1e+12",
        ),
        (Query(features={"age": ["3"]}), "features (age) must be among the model's: the model has none"),
        (Query("5", 5, num_slots=6), "num_slots (6) must be from 0 to num_candidates (5)"),
        (Query("5", 5, seed=1 << 64), "sampling.seed (18446744073709551616) must be from 0 to 2^64 - 1"),
    ],
)
def test_rules(query: Query, message: str, retriever: Retriever) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        retriever.retrieve(query)


def test_slots_need_a_ranker(retriever: Retriever) -> None:
    with pytest.raises(UnsupportedError, match=r"num_slots \(2\): the served model has no late-stage ranker"):
        retriever.retrieve(Query("5", 5, num_slots=2))
