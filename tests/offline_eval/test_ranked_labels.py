import math

import pytest
import torch

from offline_eval.procedures.ranked_labels import by_name, ranked_labels


def test_by_hand() -> None:
    # Positives 0, 2, 3, 6; the list 2, 1, 0, 5, 3 hits at places 1, 3 and 5.
    labels = torch.tensor([[1.0, 0, 1, 1, 0, 0, 1, 0]])
    found = ranked_labels(labels, torch.tensor([[2, 1, 0, 5, 3]]), 5)
    assert found.precision == pytest.approx(3 / 5)
    assert found.recall == pytest.approx(3 / 4)
    gain = 1 + 1 / math.log2(4) + 1 / math.log2(6)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
    assert found.ndcg == pytest.approx(gain / best)
    first = ranked_labels(labels, torch.tensor([[2, 1, 0, 5, 3]]), 1)
    assert first == (1, pytest.approx(1 / 4), 1)


def test_contexts_without_a_positive_are_left_out() -> None:
    labels = torch.tensor([[0.0, 0, 0], [0, 1, 0]])
    lists = torch.tensor([[0, 1], [1, 0]])
    assert ranked_labels(labels, lists, 2) == (0.5, 1, 1)


def test_the_best_lists_have_ndcg_1_and_the_worst_nothing() -> None:
    labels = (torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    best, worst = (by_name(labels, labels.argsort(dim=1, descending=best)) for best in (True, False))
    assert best["ndcg@5"] == best["ndcg@10"] == pytest.approx(1)
    assert worst["ndcg@5"] == worst["precision@10"] == 0
    assert best["recall@5"] < best["recall@10"] <= 1
