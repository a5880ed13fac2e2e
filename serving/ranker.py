"""The served late-stage ranker: `ranker.onnx` of a bundle orders the candidates, the first L fill the slots.

Its inputs are `context_id` (B,) and `item_ids` (B, K) as strings, or `context_row` and `item_rows` as int64; its output
`scores` is (B, K) float32. Axes: C contexts, N items, K candidates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from serving.errors import BundleCorruptError

INPUTS: Mapping[tuple[str, str], str] = {
    ("context_id", "item_ids"): "tensor(string)",
    ("context_row", "item_rows"): "tensor(int64)",
}
"""What a model may ask for."""


class Ranker:
    """Scores one context's candidates."""

    def __init__(self, session: ort.InferenceSession, item_ids: Sequence[str]) -> None:
        """Wrap a loaded model.

        Raises:
            BundleCorruptError: it asks for other inputs, or has other outputs.
        """
        asked = {node.name: node.type for node in session.get_inputs()}
        names = next((pair for pair, kind in INPUTS.items() if asked == dict.fromkeys(pair, kind)), None)
        if names is None or [node.name for node in session.get_outputs()] != ["scores"]:
            raise BundleCorruptError(f"ranker.onnx: its inputs are {', '.join(asked)}, or its output is not scores")
        self.session = session
        self.context_name, self.item_name = names
        self.by_row = INPUTS[names] == "tensor(int64)"
        self.item_ids = np.array(item_ids, dtype=object)

    def knows(self, context_id: str, context_row: int | None) -> bool:
        """Whether the model can be asked about a context."""
        return context_row is not None if self.by_row else bool(context_id)

    def order(self, context_id: str, context_row: int | None, items: np.ndarray) -> np.ndarray:
        """Positions of the candidates by falling score, ties in the candidates' order: (K,) -> (K,)."""
        order: np.ndarray = np.argsort(-self.scores(context_id, context_row, items), kind="stable")
        return order

    def scores(self, context_id: str, context_row: int | None, items: np.ndarray) -> np.ndarray:
        """Scores of one context's candidates.

        Args:
            context_id: the context's own id, for a model that asks for ids.
            context_row: its row in the bundle, for a model that asks for rows.
            items: rows of the candidates, (K,).

        Returns:
            (K,) float32.

        Raises:
            BundleCorruptError: the model fails, or a score is not finite.
        """
        context = np.array([context_row]) if self.by_row else np.array([context_id], dtype=object)
        candidates = items if self.by_row else self.item_ids[items]
        try:
            (scores,) = self.session.run(["scores"], {self.context_name: context, self.item_name: candidates[None]})
        except Exception as error:  # ONNX Runtime's errors have no common class but Exception
            raise BundleCorruptError("ranker.onnx cannot be run") from error
        if scores.shape != (1, len(items)) or not np.isfinite(scores).all():
            raise BundleCorruptError("ranker.onnx gives scores of another shape, or that are not finite")
        result: np.ndarray = scores[0]
        return result
