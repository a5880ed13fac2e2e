import json

import pytest

from esr_trainer.hashed_text import HashedText
from esr_trainer.vocabularies import Categories, padded, vocabularies_of_json, vocabularies_to_json


def test_a_bag_holds_each_known_value_once() -> None:
    assert Categories(("red", "blue", "green")).indices(["green", "white", "red", "green"]) == [2, 0]


def test_bags_are_padded() -> None:
    assert padded([[2, 0], [], [1]], 3).tolist() == [[2, 0, -1], [-1, -1, -1], [1, -1, -1]]
    assert padded([], 2).shape == (0, 2)


def test_vocabularies_survive_json() -> None:
    written = {"kind": Categories(("b", "a")), "title": HashedText(buckets=5)}
    assert vocabularies_of_json(json.loads(json.dumps(vocabularies_to_json(written)))) == written


def test_a_vocabulary_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        vocabularies_of_json({"title": {"kind": "word-pieces"}})
