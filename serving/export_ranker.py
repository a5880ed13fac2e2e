"""Export of the late-stage ranker: a run's learned ranker as ONNX, a user's ONNX ranker as it is.

Axes: B batch, C contexts, N items, K candidates, D embedding dimension.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from esr_trainer.command_line import UsageError
from esr_trainer.learned_ranker import rows_of
from esr_trainer.onnx_session import session
from esr_trainer.ranker_files import RankerFile
from esr_trainer.reward_model import RewardModel, from_bytes
from serving.ranker import Ranker

TOLERANCE = 1e-4
"""How far ONNX Runtime's scores may be from torch's, relative to the largest."""
NUM_CHECKED = 64


class ExportedRanker(nn.Module):
    """A reward model over the bundle's rows: plain tensors, gathered, multiplied and summed."""

    def __init__(self, model: RewardModel, contexts: Tensor, items: Tensor) -> None:
        super().__init__()
        self.model = model
        self.contexts = nn.Parameter(model.contexts.detach()[contexts])
        self.items = nn.Parameter(model.items.detach()[items])

    def forward(self, context_row: Tensor, item_rows: Tensor) -> Tensor:
        """Rows (B,), (B, K) -> scores (B, K)."""
        return self.model.of_embeddings(self.contexts[context_row], self.items[item_rows])


def write_ranker(path: Path, ranker: RankerFile, context_ids: tuple[str, ...], item_ids: tuple[str, ...]) -> None:
    """Write a run's late-stage ranker for a server.

    Args:
        path: the bundle's `ranker.onnx`.
        ranker: the run's file.
        context_ids: of the bundle's rows, C.
        item_ids: of the bundle's rows, N.

    Raises:
        UsageError: ONNX Runtime ranks otherwise than torch.
    """
    if ranker.name == "ranker.onnx":
        path.write_bytes(ranker.content)
        return
    model, description = from_bytes(ranker.content)
    exported = ExportedRanker(
        model, rows_of("context", context_ids, description.context_ids), rows_of("item", item_ids, description.item_ids)
    ).eval()
    example = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64))
    batch, candidates = torch.export.Dim("batch", min=1), torch.export.Dim("candidates", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
        torch.onnx.export(
            exported,
            example,
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["context_row", "item_rows"],
            output_names=["scores"],
            dynamic_shapes={"context_row": {0: batch}, "item_rows": {0: batch, 1: candidates}},
        )
    check_ranks_alike(path, exported, item_ids)


def check_ranks_alike(path: Path, exported: ExportedRanker, item_ids: tuple[str, ...]) -> None:
    """Check that ONNX Runtime gives torch's scores.

    Raises:
        UsageError: a score differs by more than rounding.
    """
    served = Ranker(session(path.read_bytes()), item_ids)
    contexts = torch.linspace(0, len(exported.contexts) - 1, min(NUM_CHECKED, len(exported.contexts))).long()
    items = torch.linspace(0, len(item_ids) - 1, min(NUM_CHECKED, len(item_ids))).long()
    with torch.no_grad():
        trained = exported(contexts, items.expand(len(contexts), -1))
    for row, expected in zip(contexts.tolist(), trained, strict=True):
        scores = torch.from_numpy(served.scores("", row, items.numpy()))
        worst = float((scores - expected).abs().max())
        if worst > TOLERANCE * max(1.0, float(trained.abs().max())):
            raise UsageError(f"export: scores of ranker.onnx are not the learned ranker's: {worst:.2g} apart")
