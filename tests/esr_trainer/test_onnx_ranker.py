import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from esr_trainer.command_line import UsageError
from esr_trainer.environments import open_world
from esr_trainer.onnx_ranker import OnnxRanker
from esr_trainer.world import World

TABLE = np.arange(30, dtype=np.float32) * 7 % 30
"""A score for each of 30 items."""


@pytest.fixture(scope="module")
def world() -> World:
    return open_world("synthetic", None, 0, contexts=20, items=30)


def model(
    nodes: list[onnx.NodeProto],
    inputs: tuple[tuple[str, int, list[str]], ...] = (
        ("context_row", TensorProto.INT64, ["B"]),
        ("item_rows", TensorProto.INT64, ["B", "K"]),
    ),
    output: str = "scores",
    table: np.ndarray = TABLE,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "ranker",
        [helper.make_tensor_value_info(*node) for node in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


LOOK_UP = helper.make_node("Gather", ["table", "item_rows"], ["scores"])


def by_rows() -> bytes:
    return bytes(model([LOOK_UP]).SerializeToString())


def by_ids() -> bytes:
    """The score is 1 where the item's id is the context's, else 0."""
    nodes = [
        helper.make_node("Unsqueeze", ["context_id", "axis"], ["column"]),
        helper.make_node("Equal", ["column", "item_ids"], ["same"]),
        helper.make_node("Cast", ["same"], ["scores"], to=TensorProto.FLOAT),
    ]
    inputs = (("context_id", TensorProto.STRING, ["B"]), ("item_ids", TensorProto.STRING, ["B", "K"]))
    found = model(nodes, inputs)
    found.opset_import[0].version = 19  # Equal of strings
    found.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    return bytes(found.SerializeToString())


def test_a_model_of_rows_scores_the_candidates(world: World) -> None:
    scores = OnnxRanker(by_rows(), world)(torch.tensor([3, 4]), torch.tensor([[1, 2, 29], [0, 5, 6]]))
    assert scores.tolist() == [[7, 14, 23], [0, 5, 12]]


def test_a_model_of_ids_gets_the_worlds_own() -> None:
    zeros = torch.zeros(2, 3)
    world = World("synthetic", "", ("x", "c"), ("a", "b", "c"), zeros, zeros, zeros, "by hand")
    assert OnnxRanker(by_ids(), world)(torch.tensor([1, 0]), torch.tensor([[2, 0], [1, 2]])).tolist() == [
        [1, 0],
        [0, 0],
    ]


def with_external_data() -> bytes:
    found = model([LOOK_UP])
    onnx.external_data_helper.set_external_data(found.graph.initializer[0], "weights.bin")
    found.graph.initializer[0].ClearField("raw_data")
    return bytes(found.SerializeToString())


def with_external_data_in_a_constant() -> bytes:
    tensor = onnx.numpy_helper.from_array(TABLE, "constant")
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    constant = helper.make_node("Constant", [], ["weights"], value=tensor)
    return bytes(
        model([constant, helper.make_node("Gather", ["weights", "item_rows"], ["scores"])]).SerializeToString()
    )


def of_other_inputs() -> bytes:
    found = model(
        [helper.make_node("Gather", ["table", "items"], ["scores"])], (("items", TensorProto.INT64, ["B", "K"]),)
    )
    return bytes(found.SerializeToString())


def of_another_type() -> bytes:
    inputs = (("context_row", TensorProto.INT32, ["B"]), ("item_rows", TensorProto.INT32, ["B", "K"]))
    return bytes(model([LOOK_UP], inputs).SerializeToString())


def of_another_output() -> bytes:
    node = helper.make_node("Gather", ["table", "item_rows"], ["score"])
    return bytes(model([node], output="score").SerializeToString())


def of_another_shape() -> bytes:
    node = helper.make_node("Gather", ["table", "context_row"], ["scores"])
    return bytes(model([node]).SerializeToString())


def of_doubles() -> bytes:
    found = model([LOOK_UP], table=TABLE.astype(np.float64))
    found.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    return bytes(found.SerializeToString())


def of_nan() -> bytes:
    table = TABLE.copy()
    table[29] = np.nan
    return bytes(model([LOOK_UP], table=table).SerializeToString())


def of_too_few_items() -> bytes:
    return bytes(model([LOOK_UP], table=TABLE[:20]).SerializeToString())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (with_external_data(), "it keeps weights in other files"),
        (with_external_data_in_a_constant(), "it keeps weights in other files"),
        (
            of_other_inputs(),
            r"its inputs are items \(tensor\(int64\)\), not context_id and item_ids \(tensor\(string\)\) or",
        ),
        (of_another_type(), r"its inputs are context_row \(tensor\(int32\)\)"),
        (of_another_output(), "its outputs are score, not scores alone"),
        (of_another_shape(), r"its scores are float32 \(20,\), not float32 \(20, 30\)"),
        (of_doubles(), "its scores are float64"),
        (of_nan(), "its scores are not all finite"),
        (of_too_few_items(), "it cannot be run"),
        (b"not a model", "it is no ONNX model"),
        (b"", "it cannot be loaded"),
    ],
)
def test_a_model_that_cannot_rank_is_refused(content: bytes, says: str, world: World) -> None:
    with pytest.raises(UsageError, match=rf"^lsr \(ranker\.onnx\): {says}"):
        OnnxRanker(content, world)


def test_a_score_that_is_not_finite_later_is_refused_too(world: World) -> None:
    ranker = OnnxRanker(by_rows(), world)
    ranker.item_values = lambda rows: rows + 100
    with pytest.raises(UsageError, match="it cannot be run"):
        ranker(torch.tensor([0]), torch.tensor([[0, 1]]))
