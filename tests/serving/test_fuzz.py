"""Whatever is sent or published: a status of the contract or a refusal; never a defect, a hang or a crash."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.bundle import REQUIRED
from serving.wire import retrieval_pb2 as wire
from serving.wire import retrieval_pb2_grpc
from tests.conftest import ROOT

PROMISED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

METHODS = (
    *(f"/esr.v1.RetrievalService/{name}" for name in ("Retrieve", "BatchRetrieve", "RecordFeedback", "GetModel")),
    *(
        f"/inference.GRPCInferenceService/{name}"
        for name in ("ModelInfer", "ModelMetadata", "ModelReady", "ServerReady")
    ),
    "/grpc.health.v1.Health/Check",
)

numbers = st.integers(0, 2**32 - 1) | st.integers(0, 1001)
ids = st.text(max_size=20) | st.integers(-1, 1001).map(str)
floats = st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), 3e38])
contexts = st.one_of(
    st.builds(dict),
    ids.map(lambda context_id: {"context_id": context_id}),
    st.builds(
        lambda values: {"embedding": wire.ContextEmbedding(values=values)},
        st.lists(floats, max_size=31) | st.lists(floats, min_size=30, max_size=30),
    ),
    st.builds(
        lambda features: {
            "features": wire.ContextFeatures(
                values={name: wire.FeatureValues(values=values) for name, values in features.items()}
            )
        },
        st.dictionaries(ids, st.lists(ids, max_size=3), max_size=3),
    ),
)
optional = st.fixed_dictionaries(
    {},
    optional={
        "num_candidates": numbers,
        "num_slots": st.integers(0, 3) | numbers,
        "excluded_item_ids": st.lists(ids, max_size=20),
        "allowed_items": st.builds(lambda items: wire.ItemList(item_ids=items), st.lists(ids, max_size=20)),
        "sampling": st.builds(lambda seed: wire.Sampling(seed=seed), st.integers(0, 2**64 - 1)),
        "request_id": st.text(max_size=200),
    },
)
requests = st.builds(lambda context, rest: wire.RetrieveRequest(**context, **rest), contexts, optional)


@pytest.fixture(scope="module")
def channel(server: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server) as channel:
        yield channel


def outcome(call: Any, request: Any) -> Any:
    """The answer, or None where the request was refused as promised."""
    try:
        return call(request, timeout=20)
    except grpc.RpcError as error:
        refusal = error
    assert refusal.code() in PROMISED, f"{refusal.code()}: {refusal.details()}"
    assert "\n" not in refusal.details()
    assert len(refusal.details()) < 400
    return None


@settings(deadline=None, max_examples=300)
@given(request=requests)
def test_any_request(channel: grpc.Channel, request: wire.RetrieveRequest) -> None:
    answer = outcome(retrieval_pb2_grpc.RetrievalServiceStub(channel).Retrieve, request)
    if answer is not None:
        assert len(answer.item_ids) == len(answer.scores) == len(answer.experts) <= request.num_candidates
        assert len(set(answer.item_ids)) == len(answer.item_ids)
        assert not set(answer.item_ids) & set(request.excluded_item_ids)
        assert all(0 < pi <= 1 for pi in answer.inclusion_propensities)
        assert answer.log_probability <= 0


@settings(deadline=None, max_examples=60)
@given(batch=st.lists(requests, max_size=5))
def test_any_batch(channel: grpc.Channel, batch: list[wire.RetrieveRequest]) -> None:
    stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
    answer = outcome(stub.BatchRetrieve, wire.BatchRetrieveRequest(requests=batch))
    for result in answer.results if answer else ():
        if result.WhichOneof("outcome") == "error":
            assert result.error.code in {code.value[0] for code in PROMISED}


@settings(deadline=None, max_examples=200)
@given(message=st.binary(max_size=200))
def test_any_bytes(channel: grpc.Channel, message: bytes) -> None:
    for method in METHODS:
        outcome(channel.unary_unary(method), message)


OPEN = """
import sys
from serving import Retriever
from serving.errors import ServingError
for line in sys.stdin:
    try:
        Retriever.open(line.strip())
        print("opened", flush=True)
    except ServingError as error:
        assert "\\n" not in str(error)
        print("refused", flush=True)
"""


@pytest.fixture(scope="module")
def opener() -> Iterator[subprocess.Popen[str]]:
    """A process that opens bundle roots, so that a crash is seen as what it is."""
    command = [sys.executable, "-c", OPEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bundle(bundles: Path, opener: subprocess.Popen[str], tmp_path: Path, data: st.DataObject) -> None:
    """Files are changed and the manifest made to agree, as whoever can publish a bundle could."""
    root = tmp_path / "bundles"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(bundles, root)
    name = data.draw(st.sampled_from([*REQUIRED, "manifest.json"]))
    path = root / "1" / name
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 400) - 1) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    if name != "manifest.json":
        manifest = json.loads((root / "1" / "manifest.json").read_text())
        found = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        manifest["files"][name] = found
        (root / "1" / "manifest.json").write_text(json.dumps(manifest))
    assert opener.stdin is not None
    assert opener.stdout is not None
    print(root, file=opener.stdin, flush=True)
    assert opener.stdout.readline().strip() in ("opened", "refused"), "the process died"


@pytest.mark.slow
def test_no_request_that_coverage_leads_to_is_a_surprise(bundles: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("this machine's Python has no atheris")
    command = [sys.executable, "-m", "tests.serving.coverage_fuzzer", bundles]
    command += ["-max_total_time=20", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done " in done.stderr
