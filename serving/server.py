"""The server's life: load, listen, serve, drain. It never imports torch."""

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving import open_inference
from serving.errors import ServingError
from serving.retriever import Retriever
from serving.service import NAME, RetrievalService
from serving.wire import open_inference_pb2_grpc, retrieval_pb2_grpc

DRAIN_SECONDS = 30.0
"""How long accepted requests may take to finish after SIGTERM."""
LIVENESS = "liveness"
"""Name in grpc.health.v1 that says whether the process answers, whatever it is ready for."""


class AddressInUseError(ServingError):
    """Another process listens on the address."""


async def serve(root: Path, host: str, port: int, ready: Callable[[Retriever, str], None]) -> None:
    """Serve the highest version of a bundle root until SIGTERM or Ctrl-C, then drain.

    Args:
        root: bundle root.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        ready: called once requests are answered, with the retriever and `host:port`.

    Raises:
        ServingError: the bundle cannot be used, or the address is taken.
    """
    retriever = Retriever.open(root)
    # Linux would let a second server share the port and take half of the requests: that is an error here.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(RetrievalService(retriever), server)
    compute = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(1,))
    inference = open_inference.InferenceService(open_inference.SingleVersion(retriever), compute)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (NAME, open_inference.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    host = f"[{host}]" if ":" in host else host  # IPv6
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise AddressInUseError(f"address ({host}:{port}) cannot be listened on: is the port in use?") from error
    await server.start()
    for name in ("", NAME, LIVENESS):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    ready(retriever, f"{host}:{bound}")
    await stopping.wait()
    await health_servicer.enter_graceful_shutdown()
    await server.stop(DRAIN_SECONDS)
