"""A tower as an ONNX file: a few gathers and sums, written node by node.

torch's exporter, which reads the sources of its whole library of operators anew for every file, took seconds for them.

Axes: B batch, M experts, D embedding dimension, V vocabulary, P values of a feature, W = M D.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from esr_trainer.features import Features
from esr_trainer.hashed_text import HashedText
from esr_trainer.towers import Tower

OPSET, IR_VERSION = 20, 10

CONSTANTS = {"/zero": np.array(0), "/one": np.array(1, np.float32), "/axis": np.array([1])}
"""What the nodes of every feature read; what is not the caller's is named by a path."""


def write_tower(path: Path, tower: Tower, scale: float = 1.0) -> None:
    """Write a tower as one ONNX file: one (B, P) int64 bag per feature, -1 pads -> `embedding` (B, M, D).

    The sum over features of the mean of a bag's rows, zeros where it is empty, times `scale`. The batch is free, and so
    is the width of the bags of text.
    """
    features, tables, shape = tower.features, tower.weights(), tower.shape[1:]
    constants = {**CONSTANTS, "/shape": np.array([-1, *shape])}
    constants |= {f"/{name}/last": np.array(len(table)) for name, table in tables.items()}
    graph = helper.make_graph(
        [
            *(node for name in tables for node in mean_of_rows(name)),
            helper.make_node("Sum", [f"/{name}/mean" for name in tables], ["/sum"]),
            helper.make_node("Reshape", ["/sum", "/shape"], ["embedding"]),
        ],
        "tower",
        [bag_of(name, features) for name in tables],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", *shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    for name, table in tables.items():  # last: what is in the graph before is copied with it
        rows = padded(table.detach(), scale).numpy()
        model.graph.initializer.append(numpy_helper.from_array(rows, f"/{name}/table"))
    onnx.save(model, path)


def bag_of(name: str, features: Features) -> onnx.ValueInfoProto:
    """A feature's input."""
    is_text = isinstance(features.vocabularies[name], HashedText)
    width = f"width of {name}" if is_text else features.bags[name].shape[1]
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", width])


def mean_of_rows(name: str) -> list[onnx.NodeProto]:
    """From a feature's bag (B, P) to the mean of its rows (B, W)."""
    own = f"/{name}/"
    return [
        helper.make_node("GreaterOrEqual", [name, "/zero"], [own + "present"]),
        helper.make_node("Where", [own + "present", name, own + "last"], [own + "rows"]),  # a pad's row is zeros
        helper.make_node("Gather", [own + "table", own + "rows"], [own + "values"]),
        helper.make_node("ReduceSum", [own + "values", "/axis"], [own + "total"], keepdims=0),
        helper.make_node("Cast", [own + "present"], [own + "ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", [own + "ones", "/axis"], [own + "count"]),
        helper.make_node("Max", [own + "count", "/one"], [own + "divisor"]),
        helper.make_node("Div", [own + "total", own + "divisor"], [own + "mean"]),
    ]


def padded(table: Tensor, scale: float) -> Tensor:
    """A table times a number, and a row of zeros behind, with no other copy on the way: (V, W) -> (V + 1, W)."""
    rows = table.new_zeros(len(table) + 1, table.shape[1])
    torch.mul(table, scale, out=rows[:-1])
    return rows
