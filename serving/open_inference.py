"""The Open Inference Protocol (KServe V2) over gRPC: the retriever as a model that stock inference clients can ask."""

import asyncio
import re
import time
from importlib.metadata import version as version_of
from typing import Any

import grpc

from serving.batch_answer import combined, queries_of
from serving.current_call import describe_call
from serving.dispatcher import Dispatcher
from serving.errors import NotServingError, UnknownModelError, UnknownVersionError, quoted
from serving.health import Health
from serving.inference_tensors import INPUT_SHAPES, OUTPUTS, read_query, write_answer
from serving.messages import remaining
from serving.query import Answer
from serving.retriever import Retriever
from serving.versions import Versions
from serving.wire import open_inference_pb2, open_inference_pb2_grpc

NAME = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MODEL = "esr"
"""The one model's name; which bundle it is, its version and model_id say."""
DISTRIBUTION = "early-stage-retriever"

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers tensors with tensors; the contexts of a batch queue up together, so they are searched for together."""

    def __init__(self, versions: Versions, dispatcher: Dispatcher, health: Health) -> None:
        self._versions = versions
        self._dispatcher = dispatcher
        self._health = health

    async def ServerLive(self, request: Any, context: Context) -> Any:
        """Say that the process answers."""
        return open_inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        """Say whether a version answers."""
        return open_inference_pb2.ServerReadyResponse(ready=self._is_ready(MODEL, ""))

    async def ModelReady(self, request: Any, context: Context) -> Any:
        """Say whether one version answers."""
        return open_inference_pb2.ModelReadyResponse(ready=self._is_ready(request.name, request.version))

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        """Say what the server is."""
        return open_inference_pb2.ServerMetadataResponse(name=DISTRIBUTION, version=version_of(DISTRIBUTION))

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        """Say which tensors the model takes and gives."""
        retriever = self._find(request.name, request.version)
        response = open_inference_pb2.ModelMetadataResponse(
            name=MODEL,
            versions=[str(retriever.bundle.version)],
            platform=f"{MODEL}_{retriever.bundle.manifest.model_id}",
        )
        for name, (datatypes, shape) in INPUT_SHAPES.items():
            response.inputs.add(name=name, datatype=datatypes[0], shape=shape)
        for name, output in OUTPUTS.items():
            response.outputs.add(name=name, datatype=output.datatype, shape=[-1, -1])
        return response

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        """Pick the candidates of a batch."""
        retriever = self._find(request.model_name, request.model_version)
        describe_call(request.id, retriever.bundle.version)
        asked = read_query(request)
        queries = queries_of(retriever, asked.context_ids, asked.num_candidates)
        describe_call(request.id, retriever.bundle.version, num_queries=len(queries))
        self._dispatcher.admit(len(queries))
        deadline = time.monotonic() + remaining(context.time_remaining())
        answers = [self._dispatcher.submit(retriever, query, as_it_is, deadline) for query in queries]
        try:
            found = combined(await asyncio.gather(*answers))
        finally:
            for answer in answers:
                answer.cancel()
        response = open_inference_pb2.ModelInferResponse(
            model_name=MODEL, model_version=str(retriever.bundle.version), id=request.id
        )
        response.parameters["model_id"].string_param = retriever.bundle.manifest.model_id
        write_answer(response, asked, found)
        return response

    def _is_ready(self, name: str, version: str) -> bool:
        try:
            self._find(name, version)
        except NotServingError:
            return False
        return self._health.is_ready

    def _find(self, name: str, version: str) -> Retriever:
        if name != MODEL:
            raise UnknownModelError(f"model ({quoted(name)}) is not {MODEL}, the one that is served")
        if not version:
            return self._versions.current()
        if not re.fullmatch(r"[1-9][0-9]{0,18}", version):
            raise UnknownVersionError(f"version ({quoted(version)}) is not a positive integer")
        return self._versions.version(int(version))


def as_it_is(retriever: Retriever, answer: Answer) -> Answer:
    """What the compute thread makes of an answer: nothing yet."""
    return answer
