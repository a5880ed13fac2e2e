import pytest
from pydantic import ValidationError

from esr_trainer.hashed_text import HashedText, n_grams


def grams(text: str) -> list[str]:
    return list(n_grams(text, (3, 5), (1, 2)))


def test_a_narrow_word_is_cut_within_its_boundaries() -> None:
    assert grams("Cat") == ["<ca", "<cat", "<cat>", "cat", "cat>", "at>"]
    assert grams("a, b") == ["<a>", "<b>"]
    assert grams("at") == ["<at", "<at>", "at>"]


def test_a_run_of_wide_characters_has_no_boundaries() -> None:
    assert grams("小猫咪") == ["小", "小猫", "猫", "猫咪", "咪"]
    assert grams("猫X咪") == ["猫", "<x>", "咪"]
    assert grams("고양") == ["고", "고양", "양"]
    assert grams("🐱") == ["🐱"]


@pytest.mark.parametrize(
    ("one", "other"), [("\uff21\uff22\uff43\uff11", "abc1"), ("Straße", "STRASSE"), ("ﾈｺ", "ネコ"), ("é", "e\u0301")]
)
def test_spellings_of_one_text_are_one_text(one: str, other: str) -> None:
    assert grams(one) == grams(other)


@pytest.mark.parametrize("text", ["", "  \n", "!?\uff0c。[]", "\ud800\x00"])
def test_a_text_without_words_has_no_n_grams(text: str) -> None:
    assert HashedText().indices([text]) == []


def test_indices_are_the_same_on_every_machine_and_day() -> None:
    # crc32("猫") = 0x85DEB210, crc32("<a>") = 0x6FB782AB; both mod 2^14
    assert HashedText().indices(["猫 a"]) == [0x85DEB210 % (1 << 14), 0x6FB782AB % (1 << 14)]


def test_indices_are_distinct_and_within_the_buckets() -> None:
    few = HashedText(buckets=7)
    found = few.indices(["the quick brown fox jumps over the lazy dog", "the dog"])
    assert sorted(found) == list(range(7))
    assert len(few) == 7


def test_a_list_is_the_text_of_its_values_and_a_long_text_is_cut() -> None:
    hashed = HashedText(characters=9)
    assert hashed.indices(["cat", "dog"]) == hashed.indices(["[cat,dog]"]) == hashed.indices(["cat dog"])
    assert hashed.indices(["cat x dog"]) == hashed.indices(["cat x dog and more"])


def test_settings_survive_json_and_wrong_ones_are_refused() -> None:
    hashed = HashedText(buckets=9, narrow=(2, 2))
    assert HashedText.model_validate(hashed.to_json()) == hashed
    for wrong in ({"buckets": 0}, {"wide": (2, 1)}, {"narrow": (0, 3)}, {"kind": "words"}, {"n": 3}):
        with pytest.raises(ValidationError):
            HashedText.model_validate(wrong)
