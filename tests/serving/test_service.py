"""esr.v1.RetrievalService over the wire, against the same bundle in process."""

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving import Query, Retriever
from serving.wire import retrieval_pb2 as wire
from serving.wire import retrieval_pb2_grpc
from tests.conftest import serving, started


@pytest.fixture(scope="module")
def retriever(bundles: Path) -> Retriever:
    return Retriever.open(bundles)


@pytest.fixture(scope="module")
def stub(server: str) -> Iterator[Any]:
    with grpc.insecure_channel(server) as channel:
        yield retrieval_pb2_grpc.RetrievalServiceStub(channel)


def refusal(call: Any, request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=10)
    return raised.value


def test_every_option_as_in_process(stub: Any, retriever: Retriever) -> None:
    best = retriever.retrieve("17", 5).item_ids
    request = wire.RetrieveRequest(context_id="17", num_candidates=8, excluded_item_ids=best, request_id="mine")
    answer = stub.Retrieve(request, timeout=5)
    assert list(answer.item_ids) == retriever.retrieve(Query("17", 8, excluded=best)).item_ids
    assert not set(answer.item_ids) & set(best)
    assert (answer.request_id, answer.context_id, answer.mode) == ("mine", "17", wire.MODE_GREEDY)
    assert len(answer.inclusion_propensities) == 0

    request.allowed_items.item_ids.extend(["3", "4", *best])
    assert set(stub.Retrieve(request, timeout=5).item_ids) == {"3", "4"}
    request.allowed_items.ClearField("item_ids")
    assert len(stub.Retrieve(request, timeout=5).item_ids) == 0, "an empty allow-list allows nothing"


def test_a_draw_comes_with_what_a_log_needs(stub: Any, retriever: Retriever) -> None:
    request = wire.RetrieveRequest(context_id="5", num_candidates=12, sampling=wire.Sampling(seed=9))
    answer = stub.Retrieve(request, timeout=5)
    expected = retriever.retrieve(Query("5", 12, seed=9))
    assert list(answer.item_ids) == expected.item_ids
    assert list(answer.inclusion_propensities) == list(expected.inclusion_propensities)
    assert answer.log_probability == expected.log_probability
    assert answer.mode == wire.MODE_SAMPLED
    again = stub.Retrieve(request, timeout=5)
    assert answer.request_id != again.request_id, "made up anew where none is given"
    again.request_id = answer.request_id
    assert answer == again


def test_an_embedding_answers_as_its_context_does(stub: Any, retriever: Retriever) -> None:
    import numpy as np

    values = retriever.contexts.embed(np.array([17])).reshape(-1).tolist()
    request = wire.RetrieveRequest(embedding=wire.ContextEmbedding(values=values), num_candidates=6)
    assert list(stub.Retrieve(request, timeout=5).item_ids) == retriever.retrieve("17", 6).item_ids


def test_a_batch_is_answered_as_each_alone(stub: Any) -> None:
    requests = [
        wire.RetrieveRequest(context_id=str(row), num_candidates=1 + row % 7, request_id=str(row)) for row in range(150)
    ]
    requests[3].context_id = "nobody"
    requests[4].num_candidates = 0
    requests[5].sampling.seed = 1
    results = stub.BatchRetrieve(wire.BatchRetrieveRequest(requests=requests), timeout=20).results
    assert len(results) == 150
    for row, (request, result) in enumerate(zip(requests, results, strict=True)):
        if row in (3, 4):
            error = refusal(stub.Retrieve, request)
            assert result.error.code == error.code().value[0]
            assert result.error.message == error.details()
        else:
            alone = stub.Retrieve(request, timeout=5)
            assert list(result.response.scores) == pytest.approx(list(alone.scores), abs=1e-5)
            result.response.scores[:] = alone.scores
            assert result.response == alone


def test_a_batch_has_a_size(stub: Any) -> None:
    for count in (0, 1025):
        request = wire.BatchRetrieveRequest(requests=[wire.RetrieveRequest(context_id="5", num_candidates=1)] * count)
        error = refusal(stub.BatchRetrieve, request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == f"requests ({count}) must be from 1 to 1024"


def test_a_batch_has_room_for_so_many_candidates(stub: Any) -> None:
    request = wire.BatchRetrieveRequest(requests=[wire.RetrieveRequest(context_id="5", num_candidates=1 << 20)] * 2)
    error = refusal(stub.BatchRetrieve, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "requests (2097152 candidates together) must ask for 1048576 at most"


def test_the_model_says_what_it_can_be_asked(stub: Any, retriever: Retriever) -> None:
    model = stub.GetModel(wire.GetModelRequest(), timeout=5)
    assert model.model_id == retriever.bundle.manifest.model_id
    assert (model.num_contexts, model.num_items, model.num_experts, model.embedding_dim) == (1000, 1000, 3, 10)
    assert (model.num_candidates, model.max_candidates, model.max_batch) == (10, 1000, 1024)
    assert (model.index, model.index_recall, model.has_ranker) == ("flat", 1.0, False)


def test_slots_without_a_ranker_are_a_failed_precondition(stub: Any) -> None:
    request = wire.RetrieveRequest(context_id="5", num_candidates=5, num_slots=1)
    assert refusal(stub.Retrieve, request).code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_long_request_id_is_refused(stub: Any) -> None:
    request = wire.RetrieveRequest(context_id="5", num_candidates=5, request_id="x" * 129)
    error = refusal(stub.Retrieve, request)
    assert error.details() == "request_id (129 characters) must have at most 128"


def test_who_comes_when_it_is_full_is_turned_away_with_a_time_to_come_back(bundles: Path) -> None:
    draw = wire.RetrieveRequest(context_id="5", num_candidates=500, sampling=wire.Sampling(seed=1))
    ten = wire.BatchRetrieveRequest(requests=[draw] * 10)
    with serving(bundles, "--max-in-flight", "10") as (_, address), grpc.insecure_channel(address) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        assert stub.GetModel(wire.GetModelRequest(), timeout=5).max_batch == 10, "no more than may be in flight"
        assert len(stub.BatchRetrieve(ten, timeout=20).results) == 10
        calls = [stub.BatchRetrieve.future(ten, timeout=60) for _ in range(20)]
        codes = {call.code() for call in calls}
        assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        turned_away = next(call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert turned_away.details().endswith("queries are in flight, and 10 more exceed 10")
        status = rpc_status.from_call(turned_away)
        assert status is not None
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert 0 < info.retry_delay.nanos < 1e9


def test_an_unknown_context_is_answered_as_configured(bundles: Path) -> None:
    with (
        serving(bundles, "--unknown-context", "cold-start") as (_, address),
        grpc.insecure_channel(address) as channel,
    ):
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        answer = stub.Retrieve(wire.RetrieveRequest(context_id="nobody", num_candidates=5), timeout=5)
        assert list(answer.degradations) == [wire.DEGRADATION_COLD_START]
        assert len(answer.item_ids) == 5
        assert all(math.isfinite(score) for score in answer.scores)


def test_work_stops_at_the_deadline(bundles: Path) -> None:
    draws = [
        wire.RetrieveRequest(context_id=str(row), num_candidates=500, sampling=wire.Sampling(seed=row))
        for row in range(1000)
    ]
    options = ("--metrics-port", "0", "--max-in-flight", "1000")
    with started(bundles, *options) as (_, facts), grpc.insecure_channel(facts["address"]) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.BatchRetrieve(wire.BatchRetrieveRequest(requests=draws), timeout=0.1)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while in_flight(stub, draws[0]):
            time.sleep(0.01)
        queued = metrics_of(facts["metrics_address"], 'esr_stage_seconds_count{stage="queue"}')
    assert queued < 1000 + 900, "what nobody waits for is not computed; the question for room was"


def metrics_of(address: str, name: str) -> float:
    """One series of a server's metrics."""
    text = urlopen(f"http://{address}/metrics").read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


def in_flight(stub: Any, request: wire.RetrieveRequest) -> bool:
    """Whether there is no room for as many queries as may be in flight."""
    empty = wire.RetrieveRequest(context_id=request.context_id)  # refused without work
    try:
        stub.BatchRetrieve(wire.BatchRetrieveRequest(requests=[empty] * 1000), timeout=20)
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
    return False
