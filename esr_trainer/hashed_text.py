"""Free text as a bag of hashed character n-grams: what a tower learns a text by, and what a server makes of a new one.

Nothing is downloaded and no vocabulary is kept: an n-gram's index is a hash of it (Weinberger et al., ICML 2009), and
n-grams stay within the boundaries of a word (Bojanowski et al., TACL 2017).
"""

import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Script = Literal["wide", "narrow", ""]
Length = Annotated[int, Field(gt=0, le=16)]


class HashedText(BaseModel):
    """How the text of a feature becomes indices; stored with the model, so that a server does the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["hashed-text"] = "hashed-text"
    """What tells it from a list of categories."""
    buckets: int = Field(default=1 << 14, gt=0, le=1 << 31)
    """Rows of the feature's table; n-grams that fall together share one."""
    narrow: tuple[Length, Length] = (3, 5)
    """Shortest and longest n-gram of a word in an alphabet, its boundaries < and > counted."""
    wide: tuple[Length, Length] = (1, 2)
    """Shortest and longest n-gram of a run of wide characters, one of which says as much as a syllable or a word."""
    characters: int = Field(default=512, gt=0)
    """A text is read up to here."""

    @model_validator(mode="after")
    def _ranges_fit(self) -> "HashedText":
        for shortest, longest in (self.narrow, self.wide):
            if shortest > longest:
                raise ValueError(f"shortest n-gram ({shortest}) exceeds the longest ({longest})")
        return self

    def __len__(self) -> int:
        return self.buckets

    def indices(self, texts: Sequence[str]) -> list[int]:
        """The distinct buckets of some texts' n-grams, in the order of their first: crc32(UTF-8) mod buckets."""
        text = " ".join(texts)[: self.characters]
        grams = dict.fromkeys(n_grams(text, self.narrow, self.wide))
        return list(dict.fromkeys(zlib.crc32(gram.encode()) % self.buckets for gram in grams))

    def to_json(self) -> dict[str, Any]:
        """Every setting by name."""
        return self.model_dump(mode="json")


def n_grams(text: str, narrow: tuple[int, int], wide: tuple[int, int]) -> Iterator[str]:
    """Character n-grams of a text's words, after NFKC and case folding.

    A word is a run of letters, marks, digits and pictures (Unicode categories L, M, N, So); anything else separates. It
    is cut where wide characters (Unicode annex 11: Han, kana, hangul, emoji) begin or end. A narrow word gets the
    boundaries < and >; a wide run has none, since such scripts do not write where a word ends.

    Args:
        text: any.
        narrow: shortest and longest n-gram of narrow words.
        wide: the same of wide runs.

    Yields:
        The n-grams, those that begin first first.
    """
    for script, characters in groupby(unicodedata.normalize("NFKC", text).casefold(), key=script_of):
        if not script:
            continue
        word = "".join(characters)
        shortest, longest = wide if script == "wide" else narrow
        if script == "narrow":
            word = f"<{word}>"
        for start in range(len(word)):
            for end in range(start + shortest, min(start + longest, len(word)) + 1):
                yield word[start:end]


@lru_cache(1 << 14)
def script_of(character: str) -> Script:
    """Whether a character is wide, narrow, or none of a word."""
    category = unicodedata.category(character)
    if category[0] not in "LMN" and category != "So":
        return ""
    return "wide" if unicodedata.east_asian_width(character) in "WF" else "narrow"
