"""The Open Inference Protocol of a real server process: by the stock tritonclient, and by messages that break rules."""

import asyncio
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import Retriever, client
from serving.batch_answer import MAX_BATCH, BatchAnswer, combined, queries_of
from serving.choice import Chosen
from serving.dispatcher import Dispatcher
from serving.errors import InvalidRequestError
from serving.health import Health
from serving.inference_tensors import CONTEXT_ID, NUM_CANDIDATES, OUTPUTS
from serving.open_inference import InferenceService
from serving.telemetry import Guard
from serving.versions import Versions
from serving.wire import open_inference_pb2 as wire
from serving.wire import open_inference_pb2_grpc
from tests.conftest import stock_client

Request = wire.ModelInferRequest
Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub


def test_the_stock_client_retrieves_what_retrieve_answers(server: str, bundles: Path) -> None:
    contexts = [str(row) for row in (*range(63), 999)]
    found = stock_client(server, contexts, 20)
    for row, context_id in enumerate(contexts):
        candidates, model_id, version = client.retrieve(server, context_id, 20)
        assert found["ITEM_IDS"][row] == candidates.item_ids
        assert found["SCORES"][row] == pytest.approx(candidates.scores, abs=1e-5)
        assert found["EXPERTS"][row] == candidates.experts
    assert (found["version"], found["id"]) == (str(version), "seven")
    assert found["parameters"] == {"model_id": {"string_param": model_id}}
    assert found["live"]
    assert found["ready"]
    assert found["model_ready"]
    assert found["server"] == "early-stage-retriever"
    assert found["scores_not_asked_for"]
    assert np.shape(found["default"]) == (64, 10), "K as trained"
    metadata = found["metadata"]
    assert (metadata["name"], metadata["versions"]) == ("esr", ["1"])
    assert metadata["platform"] == f"esr_{model_id}"
    assert {name["name"]: (name["datatype"], name["shape"]) for name in metadata["inputs"]} == {
        "CONTEXT_ID": ("BYTES", ["-1", "1"]),
        "NUM_CANDIDATES": ("INT32", ["1"]),
    }
    assert {name["name"]: name["datatype"] for name in metadata["outputs"]} == {
        "ITEM_IDS": "BYTES",
        "SCORES": "FP32",
        "EXPERTS": "INT64",
    }


def test_permuted_contexts_permute_the_answers(server: str) -> None:
    contexts = [str(row) for row in range(100)]
    permutation = np.random.default_rng(0).permutation(100)
    straight = np.array(stock_client(server, contexts, 10)["ITEM_IDS"])
    permuted = np.array(stock_client(server, [contexts[row] for row in permutation], 10)["ITEM_IDS"])
    assert (permuted == straight[permutation]).all()
    assert (permuted != straight).any(axis=1).mean() > 0.9


@pytest.fixture(scope="module")
def stub(server: str) -> Iterator[Any]:
    with grpc.insecure_channel(server, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield Stub(channel)


def ids_tensor(*ids: str, shape: list[int] | None = None) -> Any:
    contents = wire.InferTensorContents(bytes_contents=[name.encode() for name in ids])
    return Request.InferInputTensor(name=CONTEXT_ID, datatype="BYTES", shape=shape or [len(ids)], contents=contents)


def k_tensor(k: int, datatype: str = "INT64", field: str = "int64_contents") -> Any:
    contents = wire.InferTensorContents(**{field: [k]})
    return Request.InferInputTensor(name=NUM_CANDIDATES, datatype=datatype, shape=[1], contents=contents)


def raw_ids(*ids: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(name)) + name for name in ids)


@pytest.mark.parametrize(
    ("datatype", "field", "raw"),
    [("INT32", "int_contents", "<i"), ("INT64", "int64_contents", "<q"), ("UINT32", "uint_contents", "<I")],
)
def test_both_encodings_give_the_same(datatype: str, field: str, raw: str, stub: Any, bundles: Path) -> None:
    by_contents = stub.ModelInfer(
        Request(model_name="esr", inputs=[k_tensor(7, datatype, field), ids_tensor("5", "17")]), timeout=5
    )
    by_raw = stub.ModelInfer(
        Request(
            model_name="esr",
            model_version="1",
            inputs=[
                Request.InferInputTensor(name=CONTEXT_ID, datatype="BYTES", shape=[2, 1]),
                Request.InferInputTensor(name=NUM_CANDIDATES, datatype=datatype, shape=[1]),
            ],
            raw_input_contents=[raw_ids(b"5", b"17"), struct.pack(raw, 7)],
        ),
        timeout=5,
    )
    expected = answer(Retriever.open(bundles), ["5", "17"], 7)
    ids, scores, experts = by_contents.outputs
    assert [item.decode() for item in ids.contents.bytes_contents] == expected.item_ids
    assert list(scores.contents.fp32_contents) == pytest.approx(expected.scores.ravel().tolist(), abs=1e-6)
    assert list(experts.contents.int64_contents) == expected.experts.ravel().tolist()
    assert not by_contents.raw_output_contents
    assert list(by_raw.raw_output_contents) == [
        raw_ids(*ids.contents.bytes_contents),
        np.array(scores.contents.fp32_contents, "<f4").tobytes(),
        np.array(experts.contents.int64_contents, "<i8").tobytes(),
    ]
    for found in (*by_contents.outputs, *by_raw.outputs):
        assert list(found.shape) == [2, 7]


def test_only_the_outputs_that_are_asked_for_come_back_in_their_order(stub: Any) -> None:
    wanted = [Request.InferRequestedOutputTensor(name=name) for name in ("EXPERTS", "ITEM_IDS")]
    found = stub.ModelInfer(Request(model_name="esr", inputs=[ids_tensor("5")], outputs=wanted), timeout=5)
    assert [tensor.name for tensor in found.outputs] == ["EXPERTS", "ITEM_IDS"]


def answer(retriever: Retriever, context_ids: list[str], num_candidates: int) -> BatchAnswer:
    return combined(retriever.answer(queries_of(retriever, context_ids, num_candidates)))


def tensor(change: Callable[[Any], object], of: Any = None) -> Any:
    """A context tensor of two, changed."""
    changed = Request.InferInputTensor()
    changed.CopyFrom(of or ids_tensor("5", "17"))
    change(changed)
    return changed


def raw(contents: bytes, shape: list[int], more: tuple[bytes, ...] = ()) -> Any:
    bare = Request.InferInputTensor(name=CONTEXT_ID, datatype="BYTES", shape=shape)
    return Request(inputs=[bare], raw_input_contents=[contents, *more])


def raw_k(contents: bytes) -> Any:
    bare = Request.InferInputTensor(name=CONTEXT_ID, datatype="BYTES", shape=[1])
    k = Request.InferInputTensor(name=NUM_CANDIDATES, datatype="INT32", shape=[1])
    return Request(inputs=[bare, k], raw_input_contents=[raw_ids(b"5"), contents])


SHARED_MEMORY = {"shared_memory_region": wire.InferParameter(string_param="region")}
SHAPE = r"shape \(\[.*\]\) must be \[B, 1\] or \[B\] with B from 1 to 1024"
BROKEN: dict[str, tuple[Any, str]] = {
    "no input": (Request(), r"inputs \(none\) must hold CONTEXT_ID"),
    "no context": (Request(inputs=[k_tensor(3)]), r"inputs \(NUM_CANDIDATES\) must hold CONTEXT_ID"),
    "unknown input": (
        Request(inputs=[ids_tensor("5"), Request.InferInputTensor(name="a\nb")]),
        r"inputs \(a\\nb\) must be among CONTEXT_ID, NUM_CANDIDATES",
    ),
    "twice": (Request(inputs=[ids_tensor("5"), ids_tensor("5")]), r"inputs \(CONTEXT_ID\) must not be given twice"),
    "unknown output": (
        Request(inputs=[ids_tensor("5")], outputs=[Request.InferRequestedOutputTensor(name="x")]),
        r"outputs \(x\) must be among ITEM_IDS, SCORES, EXPERTS",
    ),
    "output twice": (
        Request(inputs=[ids_tensor("5")], outputs=[Request.InferRequestedOutputTensor(name="SCORES")] * 2),
        r"outputs \(SCORES\) must not be given twice",
    ),
    "shared memory": (
        Request(inputs=[Request.InferInputTensor(name=CONTEXT_ID, parameters=SHARED_MEMORY)]),
        r"CONTEXT_ID parameters \(shared_memory_region\) must be empty",
    ),
    "output in shared memory": (
        Request(
            inputs=[ids_tensor("5")],
            outputs=[Request.InferRequestedOutputTensor(name="SCORES", parameters=SHARED_MEMORY)],
        ),
        r"SCORES parameters \(shared_memory_region\) must be empty",
    ),
    "datatype": (
        Request(inputs=[tensor(lambda t: setattr(t, "datatype", "INT64"))]),
        r"CONTEXT_ID datatype \(INT64\) must be BYTES",
    ),
    "datatype of k": (
        Request(inputs=[ids_tensor("5"), tensor(lambda t: setattr(t, "datatype", "FP32"), k_tensor(3))]),
        r"NUM_CANDIDATES datatype \(FP32\) must be INT32 or INT64 or UINT32",
    ),
    "no datatype": (Request(inputs=[tensor(lambda t: t.ClearField("datatype"))]), r"datatype \(\) must be BYTES"),
    "shape of more": (Request(inputs=[ids_tensor("5", shape=[2])]), r"contents \(1 elements\) must be the 2 of"),
    "shape of fewer": (Request(inputs=[ids_tensor("5", "6", shape=[1])]), r"contents \(2 elements\) must be the 1 of"),
    "no shape": (Request(inputs=[tensor(lambda t: t.ClearField("shape"))]), SHAPE),
    "batch of 0": (Request(inputs=[ids_tensor(shape=[0])]), SHAPE),
    "negative batch": (Request(inputs=[ids_tensor("5", shape=[-1])]), SHAPE),
    "two negatives": (Request(inputs=[ids_tensor("5", shape=[-1, -1])]), SHAPE),
    "huge batch": (Request(inputs=[ids_tensor("5", shape=[2**62])]), SHAPE),
    "huge product": (Request(inputs=[ids_tensor("5", shape=[2**62, 2**62, 16])]), SHAPE),
    "many dimensions": (Request(inputs=[ids_tensor("5", shape=[1] * 100_000)]), SHAPE),
    "two columns": (Request(inputs=[ids_tensor("5", "6", shape=[1, 2])]), SHAPE),
    "no column": (Request(inputs=[ids_tensor(shape=[1, 0])]), SHAPE),
    "batch beyond the limit": (Request(inputs=[ids_tensor(*["5"] * (MAX_BATCH + 1))]), SHAPE),
    "contents of another type": (
        Request(
            inputs=[tensor(lambda t: t.contents.CopyFrom(wire.InferTensorContents(int_contents=[5, 17])))],
        ),
        r"CONTEXT_ID contents \(int_contents\) must be bytes_contents, as BYTES says",
    ),
    "contents of two types": (
        Request(inputs=[ids_tensor("5"), tensor(lambda t: t.contents.fp32_contents.append(1), k_tensor(3))]),
        r"NUM_CANDIDATES contents \(fp32_contents\) must be int64_contents, as INT64 says",
    ),
    "no contents": (Request(inputs=[tensor(lambda t: t.ClearField("contents"))]), r"contents \(0 elements\) must be"),
    "empty id": (
        Request(inputs=[ids_tensor("5", "")]),
        r"context \(0 given\) must be exactly one of",
    ),
    "not UTF-8": (
        Request(inputs=[tensor(lambda t: t.contents.bytes_contents.__setitem__(1, b"\xff"))]),
        r"CONTEXT_ID element 1 \(.*xff.*\) must be UTF-8",
    ),
    "k of 0": (Request(inputs=[ids_tensor("5"), k_tensor(0)]), r"num_candidates \(0\) must be from 1 to"),
    "negative k": (Request(inputs=[ids_tensor("5"), k_tensor(-(2**63))]), r"num_candidates \(-9223372036854775808\)"),
    "k of all": (Request(inputs=[ids_tensor("5"), k_tensor(2**63 - 1)]), r"num_candidates \(9223372036854775807\)"),
    "shape of k": (
        Request(inputs=[ids_tensor("5"), tensor(lambda t: t.shape.append(1), k_tensor(3))]),
        r"NUM_CANDIDATES shape \(\[1, 1\]\) must be \[1\]",
    ),
    "two ks": (
        Request(inputs=[ids_tensor("5"), tensor(lambda t: t.contents.int64_contents.append(1), k_tensor(3))]),
        r"NUM_CANDIDATES contents \(2 elements\) must be the 1 of the shape",
    ),
    "raw for fewer": (
        Request(inputs=[ids_tensor("5"), k_tensor(3)], raw_input_contents=[raw_ids(b"5")]),
        r"raw_input_contents \(1 tensors\) must hold the 2 inputs",
    ),
    "raw for more": (raw(raw_ids(b"5"), [1], (b"",)), r"raw_input_contents \(2 tensors\) must hold the 1 inputs"),
    "raw and contents": (
        Request(inputs=[ids_tensor("5")], raw_input_contents=[raw_ids(b"5")]),
        r"CONTEXT_ID contents \(bytes_contents\) must be empty where raw_input_contents are given",
    ),
    "raw of none": (raw(b"", [1]), r"raw contents \(0 bytes\) must hold 1 elements, but end in number 0"),
    "raw cut in a length": (raw(b"\1\0\0", [1]), r"raw contents \(3 bytes\) must hold 1 elements"),
    "raw cut in an id": (raw(b"\2\0\0\0" + b"5", [1]), r"raw contents \(5 bytes\) must hold 1 elements"),
    "raw length of 4 GB": (raw(b"\xff\xff\xff\xff" + b"5", [1]), r"raw contents \(5 bytes\) must hold 1 elements"),
    "raw of fewer": (raw(raw_ids(b"5"), [2]), r"raw contents \(5 bytes\) must hold 2 elements, but end in number 1"),
    "raw of more": (raw(raw_ids(b"5", b"6"), [1]), r"raw contents \(10 bytes\) must end after 1 elements, at byte 5"),
    "raw k cut": (raw_k(b"\3\0\0"), r"NUM_CANDIDATES raw contents \(3 bytes\) must be the 4 bytes of one INT32"),
    "raw k too long": (raw_k(b"\3" + bytes(7)), r"NUM_CANDIDATES raw contents \(8 bytes\) must be the 4 bytes"),
}


def refusal(call: Callable[..., object], request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=5)
    assert len(raised.value.details()) < 300
    assert raised.value.details().isprintable(), "one line"
    return raised.value


@pytest.mark.parametrize("name", BROKEN)
def test_a_tensor_that_breaks_a_rule_is_said_in_one_line(name: str, stub: Any) -> None:
    request, rule = BROKEN[name]
    request.model_name = "esr"
    error = refusal(stub.ModelInfer, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(rule, error.details()), error.details()


@pytest.mark.parametrize(
    ("model", "version", "context_id", "message"),
    [
        ("other", "", "5", "model (other) is not esr, the one that is served"),
        ("", "", "5", "model () is not esr, the one that is served"),
        ("a\nb" + "x" * 10_000, "", "5", "model (a\\nb" + "x" * 97 + ") is not esr, the one that is served"),
        ("esr", "2", "5", "version (2) is not loaded"),
        ("esr", "01", "5", "version (01) is not a positive integer"),
        ("esr", "²", "5", "version (²) is not a positive integer"),
        ("esr", "9" * 5000, "5", f"version ({'9' * 100}) is not a positive integer"),
        ("esr", "", "nobody", "context_id (nobody) is not among the model's contexts"),
        ("esr", "", "a\nb", "context_id (a\\nb) is not among the model's contexts"),
    ],
)
def test_what_is_not_there_is_not_found(model: str, version: str, context_id: str, message: str, stub: Any) -> None:
    request = Request(model_name=model, model_version=version, inputs=[ids_tensor("5", context_id)])
    errors = [refusal(stub.ModelInfer, request)]
    if context_id == "5":
        errors.append(refusal(stub.ModelReady, wire.ModelReadyRequest(name=model, version=version)))
        errors.append(refusal(stub.ModelMetadata, wire.ModelMetadataRequest(name=model, version=version)))
    for error in errors:
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, message)


def test_an_answer_that_would_be_too_large_is_refused(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batch_answer.MAX_CANDIDATES", 20)
    retriever = Retriever.open(bundles)
    assert answer(retriever, ["5", "17"], 10).scores.shape == (2, 10)
    with pytest.raises(InvalidRequestError, match=r"num_candidates \(11\) times the batch \(2\) exceeds 20 an answer"):
        answer(retriever, ["5", "17"], 11)


def test_while_nothing_is_loaded_the_server_lives_but_is_not_ready(tmp_path: Path) -> None:
    async def ask() -> None:
        server = grpc.aio.server(interceptors=[Guard()])
        with closing(Dispatcher(10)) as dispatcher:
            service = InferenceService(Versions(tmp_path, Chosen()), dispatcher, Health("esr.v1.RetrievalService"))
            open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = Stub(channel)
                assert (await stub.ServerLive(wire.ServerLiveRequest())).live
                assert not (await stub.ServerReady(wire.ServerReadyRequest())).ready
                assert not (await stub.ModelReady(wire.ModelReadyRequest(name="esr"))).ready
                for call, request in (
                    (stub.ModelMetadata, wire.ModelMetadataRequest(name="esr")),
                    (stub.ModelInfer, Request(model_name="esr", inputs=[ids_tensor("5")])),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as raised:
                        await call(request)
                    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            await server.stop(None)

    asyncio.run(ask())


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """A request as it should be, with one part of it, or none, drawn at random."""
    ids = draw(st.lists(st.sampled_from([b"5", b"17", b"999"]), min_size=1, max_size=3))
    k = draw(st.integers(1, 10))
    contexts = Request.InferInputTensor(name=CONTEXT_ID, datatype="BYTES", shape=[len(ids)])
    count = Request.InferInputTensor(name=NUM_CANDIDATES, datatype="INT32", shape=[1])
    request = Request(model_name="esr", inputs=[contexts, count])
    if draw(st.booleans()):
        request.raw_input_contents.extend([raw_ids(*ids), struct.pack("<i", k)])
    else:
        request.inputs[0].contents.bytes_contents.extend(ids)
        request.inputs[1].contents.int_contents.append(k)
    draw(st.sampled_from(DAMAGES))(draw, request)
    return request


def damage_name(draw: st.DrawFn, request: Any) -> None:
    draw(st.sampled_from(list(request.inputs))).name = draw(st.sampled_from([CONTEXT_ID, NUM_CANDIDATES]) | st.text())


def damage_datatype(draw: st.DrawFn, request: Any) -> None:
    datatype = draw(st.sampled_from(["BYTES", "INT32", "INT64", "UINT32", "FP32"]) | st.text())
    draw(st.sampled_from(list(request.inputs))).datatype = datatype


def damage_shape(draw: st.DrawFn, request: Any) -> None:
    dimension = st.integers(0, 4) | st.integers(-(2**63), 2**63 - 1)
    draw(st.sampled_from(list(request.inputs))).shape[:] = draw(st.lists(dimension, max_size=3))


def damage_ids(draw: st.DrawFn, request: Any) -> None:
    request.inputs[0].contents.bytes_contents[:] = draw(st.lists(st.binary() | st.text().map(str.encode), max_size=4))


def damage_k(draw: st.DrawFn, request: Any) -> None:
    request.inputs[1].contents.int_contents[:] = draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2))


def damage_other_contents(draw: st.DrawFn, request: Any) -> None:
    draw(st.sampled_from(list(request.inputs))).contents.fp32_contents.append(draw(st.floats(width=32)))


def damage_raw(draw: st.DrawFn, request: Any) -> None:
    request.raw_input_contents[:] = draw(st.lists(st.binary(), max_size=3))


def damage_a_raw_byte(draw: st.DrawFn, request: Any) -> None:
    for number, whole in enumerate(request.raw_input_contents):
        cut, byte = draw(st.integers(0, len(whole))), draw(st.binary(max_size=1))
        request.raw_input_contents[number] = whole[:cut] + byte + whole[cut + draw(st.integers(0, 1)) :]


def damage_inputs(draw: st.DrawFn, request: Any) -> None:
    del request.inputs[draw(st.integers(0, 1))]


def damage_outputs(draw: st.DrawFn, request: Any) -> None:
    for name in draw(st.lists(st.sampled_from(list(OUTPUTS)) | st.text(), max_size=3)):
        request.outputs.add(name=name)


def damage_nothing(draw: st.DrawFn, request: Any) -> None:
    request.id = draw(st.text())


DAMAGES = [value for name, value in list(globals().items()) if name.startswith("damage_")]


@given(request=requests())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_message_is_answered_or_refused(request: Any, stub: Any) -> None:
    try:
        response = stub.ModelInfer(request, timeout=5)
    except grpc.RpcError as raised:
        code, message = raised.code(), raised.details()
    else:
        assert all(math.prod(tensor.shape) > 0 for tensor in response.outputs)
        return
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), message
    assert message.isprintable()
    assert len(message) < 300
