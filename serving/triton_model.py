"""The bundle as a model of Triton's Python backend: the retriever of the server, asked with the same tensors.

This file is copied to `<repository>/esr/<version>/model.py`, beside `bundle/`; Triton's Python must have
early-stage-retriever installed. `triton_python_backend_utils` exists only inside Triton, and
holds TritonError and the rest only once a model is initialised, so nothing is taken from it at import.
Axes: B batch, K candidates.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from serving.batch_answer import combined, queries_of
from serving.bundle import load_bundle
from serving.errors import InvalidRequestError, UnknownContextError
from serving.inference_tensors import CONTEXT_ID, NUM_CANDIDATES, check_batch, decode
from serving.retriever import Retriever


class TritonPythonModel:
    """What the Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle beside this file, every file hashed first, and check its golden queries."""
        version = args["model_version"]
        self.retriever = Retriever(load_bundle(Path(args["model_repository"]) / version / "bundle", int(version)))
        self.retriever.check_golden_queries()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, a batch of contexts, with one search."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """The answer to one request, or its refusal."""
        try:
            return triton.InferenceResponse(output_tensors=self.infer(request))
        except InvalidRequestError as error:
            refusal = triton.TritonError(str(error), triton.TritonError.INVALID_ARG)
        except UnknownContextError as error:
            refusal = triton.TritonError(str(error), triton.TritonError.NOT_FOUND)
        return triton.InferenceResponse(output_tensors=[], error=refusal)

    def infer(self, request: Any) -> list[Any]:
        """The candidates of a batch of contexts, as tensors."""
        context_ids = triton.get_input_tensor_by_name(request, CONTEXT_ID).as_numpy()
        check_batch(context_ids.shape)
        k = triton.get_input_tensor_by_name(request, NUM_CANDIDATES)
        ids = [decode(number, element) for number, element in enumerate(context_ids.ravel().tolist())]
        queries = queries_of(self.retriever, ids, None if k is None else int(k.as_numpy()[0]))
        found = combined(self.retriever.answer(queries))
        item_ids = np.array([item.encode() for item in found.item_ids], object).reshape(found.scores.shape)
        return [
            triton.Tensor("ITEM_IDS", item_ids),
            triton.Tensor("SCORES", found.scores),
            triton.Tensor("EXPERTS", np.ascontiguousarray(found.experts)),
        ]
