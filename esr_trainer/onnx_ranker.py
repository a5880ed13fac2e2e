"""A user's late-stage ranker: an ONNX model, run by ONNX Runtime on one thread.

Its input names say what it gets: `context_id` (B,) and `item_ids` (B, K) as strings, or `context_row` (B,) and
`item_rows` (B, K) as int64, rows in the order of the world's ids. Its one output `scores` is (B, K) float32.
Axes: B batch, C contexts, N items, K candidates.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.onnx_session import OnnxModelError, first_line, session
from esr_trainer.world import Catalogue

INPUTS: Mapping[tuple[str, str], str] = {
    ("context_id", "item_ids"): "tensor(string)",
    ("context_row", "item_rows"): "tensor(int64)",
}
"""What a model may ask for."""


class OnnxRanker:
    """Scores candidates by the user's model."""

    def __init__(self, content: bytes, catalogue: Catalogue) -> None:
        """Open a model and try it on some contexts and items.

        Raises:
            UsageError: it keeps weights in other files, does not load, asks for other inputs, or its scores are of
                another shape or not finite.
        """
        try:
            self.session = session(content)
        except OnnxModelError as error:
            raise refusal(str(error)) from error
        asked = {node.name: node.type for node in self.session.get_inputs()}
        names = next((pair for pair in INPUTS if set(pair) == asked.keys()), None)
        if names is None or any(kind != INPUTS[names] for kind in asked.values()):
            wanted = " or ".join(f"{' and '.join(pair)} ({kind})" for pair, kind in INPUTS.items())
            found = ", ".join(f"{name} ({kind})" for name, kind in asked.items())
            raise refusal(f"its inputs are {found or 'none'}, not {wanted}")
        given = [node.name for node in self.session.get_outputs()]
        if given != ["scores"]:
            raise refusal(f"its outputs are {', '.join(given)}, not scores alone")
        self.names = names
        self.context_values, self.item_values = values_of(INPUTS[names], catalogue)
        for count, width in ((min(len(catalogue.context_ids), 64), min(len(catalogue.item_ids), 64)), (1, 1)):
            contexts = torch.linspace(0, len(catalogue.context_ids) - 1, count).long()
            self(contexts, torch.linspace(0, len(catalogue.item_ids) - 1, width).long().expand(count, -1))

    def __call__(self, contexts: Tensor, items: Tensor) -> Tensor:
        """Scores: (B,), (B, K) -> (B, K).

        Raises:
            UsageError: the model fails, or its scores are of another shape or type, or not finite.
        """
        feed = dict(
            zip(self.names, (self.context_values(contexts.numpy()), self.item_values(items.numpy())), strict=True)
        )
        try:
            (scores,) = self.session.run(["scores"], feed)
        except Exception as error:  # ONNX Runtime's errors have no common class but Exception
            raise refusal(f"it cannot be run: {first_line(error)}") from error
        if scores.shape != tuple(items.shape) or scores.dtype != np.float32:
            raise refusal(f"its scores are {scores.dtype} {scores.shape}, not float32 {tuple(items.shape)}")
        if not np.isfinite(scores).all():
            raise refusal("its scores are not all finite")
        return torch.from_numpy(scores)


def refusal(problem: str) -> UsageError:
    """What is wrong with the model, for the user."""
    return UsageError(f"lsr (ranker.onnx): {problem}")


Values = Callable[[np.ndarray], np.ndarray]
"""Rows -> what the model is told of them."""


def values_of(kind: str, catalogue: Catalogue) -> tuple[Values, Values]:
    """How contexts and items are named to the model."""
    if kind == "tensor(int64)":
        return np.asarray, np.asarray
    contexts, items = (np.array(ids, dtype=object) for ids in (catalogue.context_ids, catalogue.item_ids))
    return contexts.__getitem__, items.__getitem__
