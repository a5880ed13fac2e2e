import importlib.util
from pathlib import Path

from esr_trainer.wire import relevance_pb2
from serving.wire import admin_pb2, open_inference_pb2, retrieval_pb2
from tests.conftest import ROOT

PROTOS = sorted((ROOT / "proto").rglob("*.proto"))


def test_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = {path.relative_to(tmp_path): path for path in generator.generate(tmp_path)}
    assert set(written) == {
        path.relative_to(ROOT) for home in ("serving", "esr_trainer") for path in (ROOT / home / "wire").glob("*_pb2*")
    }
    for name, path in written.items():
        assert path.read_text() == (ROOT / name).read_text(), f"{name}: run python proto/generate.py"


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
    assert relevance_pb2.DESCRIPTOR.name == "esr/v1/relevance.proto"
