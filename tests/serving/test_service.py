"""esr.v1.RetrievalService over the wire, against the same bundle in process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving import Query, Retriever
from serving.wire import retrieval_pb2 as wire
from serving.wire import retrieval_pb2_grpc


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
