import importlib.util
from pathlib import Path

from serving.wire import admin_pb2, open_inference_pb2, retrieval_pb2
from tests.conftest import ROOT

PROTOS = sorted((ROOT / "proto").rglob("*.proto"))


def test_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = generator.generate(tmp_path)
    assert {path.name for path in written} == {path.name for path in generator.WIRE.glob("*_pb2*")}
    for path in written:
        assert path.read_text() == (generator.WIRE / path.name).read_text(), (
            f"{path.name}: run python proto/generate.py"
        )


def test_every_message_and_field_has_a_sentence() -> None:
    lines = [line.strip() for path in PROTOS for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        if line.startswith(("message ", "service ", "rpc ", "enum ", "oneof ")) or (
            line.endswith(";") and " = " in line and not line.startswith("syntax")
        ):
            assert lines[number - 1].startswith("//"), line
    assert retrieval_pb2.DESCRIPTOR.name == "esr/v1/retrieval.proto"
    assert admin_pb2.DESCRIPTOR.name == "esr/v1/admin.proto"
    assert open_inference_pb2.DESCRIPTOR.name == "inference/open_inference.proto"
