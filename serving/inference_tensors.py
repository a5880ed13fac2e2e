"""The tensors of the Open Inference Protocol: which ones the model takes and gives, and how they are written.

Pure functions between messages and values; what breaks a rule is an InvalidRequestError.
Axes: B batch, K candidates.
"""

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.batch_answer import MAX_BATCH, BatchAnswer
from serving.errors import InvalidRequestError, quoted
from serving.wire.open_inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse

CONTEXT_ID = "CONTEXT_ID"
NUM_CANDIDATES = "NUM_CANDIDATES"


Elements = list[bytes] | np.ndarray
"""The elements of an output: of BYTES row by row, of numbers (B, K)."""


class Query(NamedTuple):
    """What a request asks for."""

    context_ids: list[str]  # B
    num_candidates: int | None
    outputs: tuple[str, ...]
    is_raw: bool


class Integers(NamedTuple):
    """How a type of integers is written: the struct format of a raw element, and the field of contents."""

    raw: str
    field: str


class Output(NamedTuple):
    """An output: its datatype, the field of contents, and its elements."""

    datatype: str
    field: str
    elements: Callable[[BatchAnswer], Elements]


INTEGERS = {
    "INT32": Integers("<i", "int_contents"),
    "INT64": Integers("<q", "int64_contents"),
    "UINT32": Integers("<I", "uint_contents"),
}
INPUT_SHAPES = {CONTEXT_ID: (("BYTES",), [-1, 1]), NUM_CANDIDATES: (tuple(INTEGERS), [1])}
"""Input -> the datatypes that it may have, and its shape, -1 where free."""
OUTPUTS = {
    "ITEM_IDS": Output("BYTES", "bytes_contents", lambda answer: [item.encode() for item in answer.item_ids]),
    "SCORES": Output("FP32", "fp32_contents", lambda answer: answer.scores.astype("<f4")),
    "EXPERTS": Output("INT64", "int64_contents", lambda answer: answer.experts.astype("<i8")),
}


def read_query(request: ModelInferRequest) -> Query:
    """What a request asks for.

    Raises:
        InvalidRequestError: a tensor is missing, unknown, given twice, or breaks its rule.
    """
    check_tensors("inputs", request.inputs, tuple(INPUT_SHAPES))
    check_tensors("outputs", request.outputs, tuple(OUTPUTS))
    given = given_tensors(request)
    if CONTEXT_ID not in given:
        raise InvalidRequestError("inputs", f"({', '.join(given) or 'none'}) must hold {CONTEXT_ID}")
    return Query(
        context_ids=read_context_ids(*given[CONTEXT_ID]),
        num_candidates=read_num_candidates(*given[NUM_CANDIDATES]) if NUM_CANDIDATES in given else None,
        outputs=tuple(tensor.name for tensor in request.outputs) or tuple(OUTPUTS),
        is_raw=bool(request.raw_input_contents),
    )


def check_tensors(field: str, tensors: Sequence[Any], known: Sequence[str]) -> None:
    """Check that tensors are among the known ones, each at most once.

    An extension, such as shared memory or classification, is refused: it would be ignored without a word.
    """
    names = [tensor.name for tensor in tensors]
    for tensor in tensors:
        if tensor.name not in known:
            raise InvalidRequestError(field, f"({quoted(tensor.name)}) must be among {', '.join(known)}")
        if names.count(tensor.name) > 1:
            raise InvalidRequestError(field, f"({tensor.name}) must not be given twice")
        if tensor.parameters:
            raise InvalidRequestError(
                tensor.name, f"parameters ({quoted(min(tensor.parameters))}) must be empty: there are no extensions"
            )


def given_tensors(request: ModelInferRequest) -> dict[str, tuple[ModelInferRequest.InferInputTensor, bytes | None]]:
    """Each input by its name, with its raw contents if the request came so."""
    raws = request.raw_input_contents
    if not raws:
        return {tensor.name: (tensor, None) for tensor in request.inputs}
    if len(raws) != len(request.inputs):
        raise InvalidRequestError(
            "raw_input_contents", f"({len(raws)} tensors) must hold the {len(request.inputs)} inputs"
        )
    for tensor in request.inputs:
        for found, _ in tensor.contents.ListFields():
            raise InvalidRequestError(
                tensor.name, f"contents ({found.name}) must be empty where raw_input_contents are given"
            )
    return {tensor.name: (tensor, raw) for tensor, raw in zip(request.inputs, raws, strict=True)}


def read_context_ids(tensor: ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[str]:
    """The ids of a BYTES tensor [B, 1] or [B]."""
    check_datatype(tensor)
    shape = list(tensor.shape)
    check_batch(shape)
    elements = contents_of(tensor, "bytes_contents") if raw is None else raw_byte_elements(raw, shape[0])
    check_count(CONTEXT_ID, len(elements), shape)
    return [decode(number, element) for number, element in enumerate(elements)]


def check_batch(shape: Sequence[int]) -> None:
    """Check the shape of CONTEXT_ID."""
    if len(shape) not in (1, 2) or list(shape[1:]) not in ([], [1]) or not 1 <= shape[0] <= MAX_BATCH:
        raise InvalidRequestError(
            CONTEXT_ID, f"shape ({quoted(list(shape[:8]))}) must be [B, 1] or [B] with B from 1 to {MAX_BATCH}"
        )


def read_num_candidates(tensor: ModelInferRequest.InferInputTensor, raw: bytes | None) -> int:
    """The one integer of an INT32, INT64 or UINT32 tensor [1]."""
    check_datatype(tensor)
    if list(tensor.shape) != [1]:
        raise InvalidRequestError(NUM_CANDIDATES, f"shape ({quoted(list(tensor.shape[:8]))}) must be [1]")
    written = INTEGERS[tensor.datatype]
    if raw is None:
        elements = contents_of(tensor, written.field)
        check_count(NUM_CANDIDATES, len(elements), [1])
        return int(elements[0])
    size = struct.calcsize(written.raw)
    if len(raw) != size:
        raise InvalidRequestError(
            NUM_CANDIDATES, f"raw contents ({len(raw)} bytes) must be the {size} bytes of one {tensor.datatype}"
        )
    return int(struct.unpack(written.raw, raw)[0])


def check_datatype(tensor: ModelInferRequest.InferInputTensor) -> None:
    """Check a tensor's type of element."""
    allowed, _ = INPUT_SHAPES[tensor.name]
    if tensor.datatype not in allowed:
        raise InvalidRequestError(tensor.name, f"datatype ({quoted(tensor.datatype)}) must be {' or '.join(allowed)}")


def check_count(name: str, count: int, shape: Sequence[int]) -> None:
    """Check that there are as many elements as the shape says."""
    if count != math.prod(shape):
        raise InvalidRequestError(name, f"contents ({count} elements) must be the {math.prod(shape)} of the shape")


def contents_of(tensor: ModelInferRequest.InferInputTensor, field: str) -> Sequence[Any]:
    """The elements in one field of contents; the others must be empty."""
    for found, _ in tensor.contents.ListFields():
        if found.name != field:
            raise InvalidRequestError(
                tensor.name, f"contents ({found.name}) must be {field}, as {tensor.datatype} says"
            )
    elements: Sequence[Any] = getattr(tensor.contents, field)
    return elements


def raw_byte_elements(raw: bytes, count: int) -> list[bytes]:
    """The elements of a raw BYTES tensor, each after its length in 4 bytes."""
    elements = []
    start = 0
    for number in range(count):
        body = start + 4
        end = body + int.from_bytes(raw[start:body], "little")
        if end > len(raw):
            raise InvalidRequestError(
                CONTEXT_ID,
                f"raw contents ({len(raw)} bytes) must hold {count} elements, but end in number {number}",
            )
        elements.append(raw[body:end])
        start = end
    if start != len(raw):
        raise InvalidRequestError(
            CONTEXT_ID, f"raw contents ({len(raw)} bytes) must end after {count} elements, at byte {start}"
        )
    return elements


def decode(number: int, element: bytes) -> str:
    """An id as text."""
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(CONTEXT_ID, f"element {number} ({quoted(element)}) must be UTF-8") from error


def write_answer(response: ModelInferResponse, query: Query, answer: BatchAnswer) -> None:
    """Write the outputs that were asked for, in the encoding of the request."""
    for name in query.outputs:
        output = OUTPUTS[name]
        elements = output.elements(answer)
        tensor = response.outputs.add(name=name, datatype=output.datatype, shape=answer.scores.shape)
        if query.is_raw:
            response.raw_output_contents.append(raw_of(elements))
        else:
            tensor.contents.CopyFrom(InferTensorContents(**{output.field: values_of(elements)}))


def values_of(elements: Elements) -> list[Any]:
    """Elements row by row, for contents."""
    return elements.ravel().tolist() if isinstance(elements, np.ndarray) else elements


def raw_of(elements: Elements) -> bytes:
    """Elements row by row; those of BYTES each after its length in 4 bytes."""
    if isinstance(elements, np.ndarray):
        return elements.tobytes()
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
