"""RANKER_FILES: late-stage rankers that come as a file, fitted here or brought by the user."""

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from esr_trainer.learned_ranker import LearnedRanker
from esr_trainer.onnx_ranker import OnnxRanker
from esr_trainer.world import Catalogue

Scorer = Callable[[Tensor, Tensor], Tensor]
"""What an LSR ranks by: contexts (B,), items (B, K) -> scores (B, K), float32 and finite."""

RANKER_FILES: Mapping[str, Callable[[bytes, Catalogue], Scorer]] = {
    "ranker.safetensors": LearnedRanker,
    "ranker.onnx": OnnxRanker,
}
"""Name in a checkpoint -> content, catalogue -> what the LSR ranks by."""


class RankerFile(NamedTuple):
    """An LSR's file: a checkpoint keeps it, so that a run goes on with it and is judged by it wherever it came from."""

    name: str
    """In RANKER_FILES."""
    content: bytes

    @property
    def sha256(self) -> str:
        """What decides it."""
        return hashlib.sha256(self.content).hexdigest()

    def open(self, catalogue: Catalogue) -> Scorer:
        """What the LSR ranks by in a catalogue.

        Raises:
            UsageError: the file does not hold such a ranker, or not one for this catalogue.
        """
        return RANKER_FILES[self.name](self.content, catalogue)
