"""Export of the late-stage ranker: a run's learned ranker as ONNX, a user's ONNX ranker as it is.

Axes: B batch, C contexts, N items, K candidates, D embedding dimension.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.learned_ranker import rows_of
from esr_trainer.onnx_session import session
from esr_trainer.ranker_files import RankerFile
from esr_trainer.reward_model import Link, RewardModel, from_bytes
from serving.export_tower import IR_VERSION, OPSET
from serving.ranker import Ranker

TOLERANCE = 1e-4
"""How far ONNX Runtime's scores may be from torch's, relative to the largest."""
NUM_CHECKED = 64

LINK_NODES: Mapping[Link, str] = {"identity": "Identity", "softplus": "Softplus"}
"""A reward model's link as ONNX calls it."""


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
    contexts = rows_of("context", context_ids, description.context_ids)
    items = rows_of("item", item_ids, description.item_ids)
    with torch.no_grad():
        onnx.save(of_rows(model, contexts, items), path)
        check_ranks_alike(path, model, contexts, items, item_ids)


def of_rows(model: RewardModel, contexts: Tensor, items: Tensor) -> onnx.ModelProto:
    """A reward model over the bundle's rows: rows (B,), (B, K) -> `scores` (B, K).

    What is added to <u_x, v_a> is two more places of either embedding: (u_x, level + b_x, 1) and (v_a, 1, b_a).
    """
    context, item = model.contexts[contexts], model.items[items]
    constants = {
        "contexts": torch.cat([context[:, :-1], model.level + context[:, -1:], torch.ones(len(context), 1)], dim=1),
        "items": torch.cat([item[:, :-1], torch.ones(len(item), 1), item[:, -1:]], dim=1),
        "scale": model.scale,
        "last": torch.tensor([2]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["contexts", "context_row"], ["context"]),
            helper.make_node("Unsqueeze", ["context", "last"], ["column"]),
            helper.make_node("Gather", ["items", "item_rows"], ["item"]),
            helper.make_node("MatMul", ["item", "column"], ["products"]),
            helper.make_node("Squeeze", ["products", "last"], ["sums"]),
            helper.make_node(LINK_NODES[model.link], ["sums"], ["rewards"]),
            helper.make_node("Mul", ["rewards", "scale"], ["scores"]),
        ],
        "ranker",
        [
            helper.make_tensor_value_info("context_row", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("item_rows", TensorProto.INT64, ["batch", "candidates"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "candidates"])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def check_ranks_alike(
    path: Path, model: RewardModel, contexts: Tensor, items: Tensor, item_ids: tuple[str, ...]
) -> None:
    """Check that ONNX Runtime gives torch's scores.

    Raises:
        UsageError: a score differs by more than rounding.
    """
    served = Ranker(session(path.read_bytes()), item_ids)
    some = torch.linspace(0, len(contexts) - 1, min(NUM_CHECKED, len(contexts))).long()
    shown = torch.linspace(0, len(items) - 1, min(NUM_CHECKED, len(items))).long()
    trained = model(contexts[some], items[shown].expand(len(some), -1))
    for row, expected in zip(some.tolist(), trained, strict=True):
        scores = torch.from_numpy(served.scores("", row, shown.numpy()))
        worst = float((scores - expected).abs().max())
        if worst > TOLERANCE * max(1.0, float(trained.abs().max())):
            raise UsageError(f"export: scores of ranker.onnx are not the learned ranker's: {worst:.2g} apart")
