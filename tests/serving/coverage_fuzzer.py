"""Coverage-guided fuzzing of one request, from bytes to the encoded answer.

`python -m tests.serving.coverage_fuzzer ROOT [LIBFUZZER OPTIONS]`.

Whatever libFuzzer mutates: a refusal of the contract or an answer, never another exception.
"""

import sys

import atheris

with atheris.instrument_imports(include=["serving"]):
    from google.protobuf.message import DecodeError

    from serving import Retriever
    from serving.errors import ServingError
    from serving.messages import query_of, response_of
    from serving.wire import retrieval_pb2

retriever = Retriever.open(sys.argv[1])


def one_request(content: bytes) -> None:
    """Parse, answer, encode."""
    try:
        request = retrieval_pb2.RetrieveRequest.FromString(content)
        answer = retriever.retrieve(query_of(request))
    except (DecodeError, ServingError):
        return
    response = retrieval_pb2.RetrieveResponse.FromString(response_of(request, retriever, answer))
    assert len(set(response.item_ids)) == len(response.item_ids) <= request.num_candidates


atheris.Setup([sys.argv[0], *sys.argv[2:]], one_request)
atheris.Fuzz()
