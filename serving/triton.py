"""A Triton model repository of a bundle, for those who run Triton already.

    <repository>/user_tower/<version>/model.onnx     ONNX Runtime backend: the bundle's own bytes
    <repository>/ranker/<version>/model.onnx         the same, where the bundle has a ranker
    <repository>/esr/<version>/model.py, bundle/     Python backend: the whole retriever, as the server answers
    <repository>/<model>/config.pbtxt                names, types and dimensions, read from the models themselves

Formats: https://github.com/triton-inference-server/server, docs/user_guide/model_repository.md, model_configuration.md.
Axes: B batch, K candidates.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort
from google.protobuf.text_encoding import CEscape

from esr_trainer.onnx_session import session
from serving.batch_answer import MAX_BATCH
from serving.bundle import (
    MANIFEST,
    USER_TOWER,
    Manifest,
    read_manifest,
)
from serving.bundle_files import verified_bytes
from serving.inference_tensors import CONTEXT_ID

RANKER = "ranker.onnx"
MODEL = "esr"

DYNAMIC_BATCHING = """# A request waits this long at most for others that one run of the model can answer with it.
dynamic_batching { max_queue_delay_microseconds: 100 }"""

DATA_TYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TensorConfig(NamedTuple):
    """A tensor of a model."""

    name: str
    data_type: str
    dims: list[int]  # -1 where free, the batch among them


def write_model_repository(repository: Path, bundle: Path, version: int) -> None:
    """Fill a directory with the models of a bundle.

    Args:
        repository: an empty directory.
        bundle: the bundle's files.
        version: the bundle's version, and so the models'.

    Raises:
        BundleCorruptError: a file is missing or was changed.
    """
    manifest = read_manifest(bundle)
    for name in (USER_TOWER, RANKER):
        if name in manifest.files:
            content = verified_bytes(bundle, manifest.files, name)
            write_onnx_model(repository / name.removesuffix(".onnx"), version, content)
    write_retriever(repository / MODEL, bundle, manifest, version)


def write_onnx_model(model: Path, version: int, content: bytes) -> None:
    """Write a model of the ONNX Runtime backend, its file as it is in the bundle."""
    (model / str(version)).mkdir(parents=True)
    (model / str(version) / "model.onnx").write_bytes(content)
    (model / "config.pbtxt").write_text(onnx_config(model.name, session(content)))


def write_retriever(model: Path, bundle: Path, manifest: Manifest, version: int) -> None:
    """Write the model of the Python backend, with the whole bundle beside it."""
    copy = model / str(version) / "bundle"
    copy.mkdir(parents=True)
    for name in manifest.files:
        (copy / name).write_bytes(verified_bytes(bundle, manifest.files, name))
    (copy / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes())
    (model / str(version) / "model.py").write_text((files("serving") / "triton_model.py").read_text())
    (model / "config.pbtxt").write_text(RETRIEVER_CONFIG)


RETRIEVER_CONFIG = f"""# The tensors of the server's own Open Inference Protocol, so one client asks either.
# A request is a batch of at most {MAX_BATCH} contexts and one search; Triton joins none, as they may differ in K.
# Loading answers the bundle's golden queries, and so warms the model up.
name: "{MODEL}"
backend: "python"
max_batch_size: 0
input [
  {{ name: "{CONTEXT_ID}" data_type: TYPE_STRING dims: [ -1, 1 ] }},
  {{ name: "NUM_CANDIDATES" data_type: TYPE_INT32 dims: [ 1 ] optional: true }}
]
output [
  {{ name: "ITEM_IDS" data_type: TYPE_STRING dims: [ -1, -1 ] }},
  {{ name: "SCORES" data_type: TYPE_FP32 dims: [ -1, -1 ] }},
  {{ name: "EXPERTS" data_type: TYPE_INT64 dims: [ -1, -1 ] }}
]
# A process each, on one thread; give as many as there are cores.
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def onnx_config(name: str, model: ort.InferenceSession) -> str:
    """config.pbtxt of an ONNX model; Triton joins requests where every tensor's first dimension is free."""
    inputs, outputs = tensors(model.get_inputs()), tensors(model.get_outputs())
    is_batched = all(tensor.dims[:1] == [-1] for tensor in (*inputs, *outputs))
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH if is_batched else 0}",
        *(f"input [ {{ {tensor_config(tensor, is_batched)} }} ]" for tensor in inputs),
        *(f"output [ {{ {tensor_config(tensor, is_batched)} }} ]" for tensor in outputs),
        *([DYNAMIC_BATCHING] if is_batched else []),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }',
        'parameters { key: "inter_op_thread_count" value: { string_value: "1" } }',
        *warmup(inputs, is_batched),
    ]
    return "\n".join(lines) + "\n"


def tensors(nodes: Iterable[Any]) -> list[TensorConfig]:
    """The tensors that ONNX Runtime names."""
    return [
        TensorConfig(
            CEscape(node.name, as_utf8=False),
            DATA_TYPES[node.type],
            [size if isinstance(size, int) else -1 for size in node.shape],
        )
        for node in nodes
    ]


def tensor_config(tensor: TensorConfig, is_batched: bool) -> str:
    """A tensor's name, type and dimensions; a batch of single values is a column to Triton."""
    dims = tensor.dims[1:] if is_batched else tensor.dims
    shape = f"dims: {dims}" if dims else "dims: [1] reshape { shape: [] }"
    return f'name: "{tensor.name}" data_type: {tensor.data_type} {shape}'


def warmup(inputs: Iterable[TensorConfig], is_batched: bool) -> list[str]:
    """A request of zeros, the first row of every table; none where an input is text, which nobody can make up."""
    if any(tensor.data_type == "TYPE_STRING" for tensor in inputs):
        return []
    lines = ['model_warmup [ { name: "zeros" batch_size: 1']
    for tensor in inputs:
        dims = [max(size, 1) for size in (tensor.dims[1:] if is_batched else tensor.dims)] or [1]
        value = f"data_type: {tensor.data_type} dims: {dims} zero_data: true"
        lines.append(f'  inputs {{ key: "{tensor.name}" value {{ {value} }} }}')
    return [*lines, "} ]"]
