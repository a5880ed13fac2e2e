import numpy as np
import pytest

from serving.errors import BundleCorruptError
from serving.golden_queries import check_answers
from serving.index import Picked

GOLDEN = {
    "candidates": np.arange(100 * 4).reshape(100, 4),
    "scores": np.tile(np.array([9, 8, 7, 6], np.float32), (100, 1)),
}


def answers(**changed: np.ndarray) -> list[Picked]:
    """The golden answers of M = 2 experts, some of their columns changed."""
    rows, scores = changed.get("rows", GOLDEN["candidates"]), changed.get("scores", GOLDEN["scores"])
    experts = changed.get("experts", np.tile([0, 0, 1, 1], (100, 1)))
    return [Picked(*query) for query in zip(rows, scores, experts, strict=True)]


def with_missing(count: int) -> np.ndarray:
    """The golden rows, `count` of the 400 replaced."""
    rows = GOLDEN["candidates"].copy()
    rows.reshape(-1)[:count] = 1000 + np.arange(count)
    return rows


def test_the_golden_answers_pass() -> None:
    check_answers(answers(), GOLDEN, 2, 1.0)
    check_answers(answers(scores=GOLDEN["scores"] + np.float32(0.008)), GOLDEN, 2, 1.0)


def test_two_in_a_hundred_items_may_differ_and_what_the_index_misses() -> None:
    check_answers(answers(rows=with_missing(8)), GOLDEN, 2, 1.0)
    with pytest.raises(BundleCorruptError, match="2% of the items differ"):
        check_answers(answers(rows=with_missing(9)), GOLDEN, 2, 1.0)
    check_answers(answers(rows=with_missing(27)), GOLDEN, 2, 0.95)
    with pytest.raises(BundleCorruptError, match="7% of the items differ"):
        check_answers(answers(rows=with_missing(29)), GOLDEN, 2, 0.95)


def test_a_shifted_answer_is_compared_item_by_item() -> None:
    rows, scores = with_missing(1), GOLDEN["scores"].copy()
    rows[0, :2], scores[0, :2] = [1, 1000], [8, 7.5]  # the best was missed, and what came after it moved up
    check_answers(answers(rows=rows, scores=scores), GOLDEN, 2, 1.0)


@pytest.mark.parametrize("value", [9.02, np.nan])
def test_another_score_is_refused(value: float) -> None:
    scores = GOLDEN["scores"].copy()
    scores[40, 0] = value
    with pytest.raises(BundleCorruptError, match="scores differ by up to"):
        check_answers(answers(scores=scores), GOLDEN, 2, 1.0)


def test_an_item_that_another_expert_picked_has_a_score_of_its_own() -> None:
    scores, experts = GOLDEN["scores"].copy(), np.tile([0, 0, 1, 1], (100, 1))
    scores[3, 1], experts[3, 1] = 2, 1
    check_answers(answers(scores=scores, experts=experts), GOLDEN, 2, 1.0)
