"""The Triton model repository: parsed by Triton's own proto, compared with the models, answered by its Python model."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from esr_trainer.command_line import UsageError, main
from esr_trainer.whole_directory import sha256
from serving import Retriever
from serving.__main__ import Serving
from serving.bundle_files import BundleFile
from serving.errors import BundleCorruptError
from serving.export import export_for_triton
from tests.conftest import last_json

PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json.dumps([json_format.MessageToDict(text_format.Parse(open(path).read(), ModelConfig()),
    preserving_proto_field_name=True) for path in sys.argv[1:]]))
"""


def parsed(*configs: Path) -> list[dict[str, Any]]:
    """config.pbtxt files by Triton's own proto, in a process of its own: it cannot share one with ours."""
    done = subprocess.run([sys.executable, "-c", PARSE, *configs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def ranked(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 of a bundle, with a ranker of rows."""
    from onnx import TensorProto, helper, save

    directory = tmp_path_factory.mktemp("ranked") / "7"
    shutil.copytree(bundles / "1", directory)
    nodes = [
        helper.make_node("Unsqueeze", ["context_row", "axis"], ["column"]),
        helper.make_node("Add", ["item_rows", "column"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["scores"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "ranker",
        [
            helper.make_tensor_value_info("context_row", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("item_rows", TensorProto.INT64, ["batch", "candidates"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "candidates"])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), directory / "ranker.onnx"
    )
    manifest = json.loads((directory / "manifest.json").read_text())
    path = directory / "ranker.onnx"
    manifest["files"][path.name] = BundleFile(sha256=sha256(path), size=path.stat().st_size).model_dump()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture(scope="module")
def repository(ranked: Path) -> Path:
    target = ranked.parent / "repository"
    export_for_triton(ranked, target)
    return target


def test_every_model_has_the_bundles_version_and_bytes(repository: Path, ranked: Path) -> None:
    assert {path.name for path in repository.iterdir()} == {"user_tower", "ranker", "esr"}
    for name in ("user_tower", "ranker"):
        assert {path.name for path in (repository / name).iterdir()} == {"7", "config.pbtxt"}
        assert (repository / name / "7" / "model.onnx").read_bytes() == (ranked / f"{name}.onnx").read_bytes()
    copied = repository / "esr" / "7" / "bundle"
    assert {path.name for path in copied.iterdir()} == {path.name for path in ranked.iterdir()}
    for path in ranked.iterdir():
        assert (copied / path.name).read_bytes() == path.read_bytes()


TYPES = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)", "TYPE_STRING": "tensor(string)"}


@pytest.mark.parametrize("name", ["user_tower", "ranker"])
def test_the_configuration_of_an_onnx_model_is_the_models(name: str, repository: Path) -> None:
    (config,) = parsed(repository / name / "config.pbtxt")
    session = ort.InferenceSession(repository / name / "7" / "model.onnx")
    assert (config["name"], config["backend"], config["max_batch_size"]) == (name, "onnxruntime", 1024)
    for said, nodes in ((config["input"], session.get_inputs()), (config["output"], session.get_outputs())):
        for tensor, node in zip(said, nodes, strict=True):
            dims = [int(size) for size in tensor["dims"]]
            if "reshape" in tensor:
                assert (tensor["reshape"], dims) == ({}, [1]), "a column to Triton is a vector to the model"
                dims = []
            assert (tensor["name"], TYPES[tensor["data_type"]]) == (node.name, node.type)
            assert dims == [size if isinstance(size, int) else -1 for size in node.shape[1:]]
            assert not isinstance(node.shape[0], int), "Triton joins batches: the first dimension must be free"
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert "dynamic_batching" in config
    (warmup,) = config["model_warmup"]
    feed = {}
    for node in session.get_inputs():
        said = warmup["inputs"][node.name]
        assert (said["zero_data"], TYPES[said["data_type"]]) == (True, node.type)
        feed[node.name] = np.zeros([1, *map(int, said["dims"])], np.int64).reshape([1] * len(node.shape))
    session.run(None, feed)


def test_a_ranker_of_names_has_no_warm_up(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    from serving.bundle import session
    from serving.triton import onnx_config

    names = helper.make_tensor_value_info('a "quoted"\nname', TensorProto.STRING, [3, "free"])
    lengths = helper.make_tensor_value_info("copy", TensorProto.STRING, [3, "free"])
    graph = helper.make_graph([helper.make_node("Identity", [names.name], ["copy"])], "names", [names], [lengths])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "config.pbtxt"
    path.write_text(onnx_config("names", session(model.SerializeToString())))
    (config,) = parsed(path)
    assert config["input"] == [{"name": 'a "quoted"\nname', "data_type": "TYPE_STRING", "dims": ["3", "-1"]}]
    assert config.get("max_batch_size", 0) == 0, "its first dimension is not free"
    assert "model_warmup" not in config
    assert "dynamic_batching" not in config


class Tensor:
    """As triton_python_backend_utils.Tensor, which exists only inside Triton."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


def triton_error(message: str, code: str) -> tuple[str, str]:
    return code, message


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """model.py as Triton's Python backend loads it; the backend's side of the border is a stand-in."""
    backend = ModuleType("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("model", repository / "esr" / "7" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)  # Triton gives the module its names only after the import
    triton_error.INVALID_ARG, triton_error.NOT_FOUND = "INVALID_ARG", "NOT_FOUND"  # type: ignore[attr-defined]
    backend.Tensor, backend.TritonError = Tensor, triton_error  # type: ignore[attr-defined]
    backend.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(  # type: ignore[attr-defined]
        tensors={tensor.name: tensor.values for tensor in output_tensors}, error=error
    )
    backend.get_input_tensor_by_name = lambda request, name: request.get(name)  # type: ignore[attr-defined]
    made = loaded.TritonPythonModel()
    made.initialize({"model_repository": str(repository / "esr"), "model_version": "7", "model_name": "esr"})
    return made


def request(*context_ids: bytes, k: int | None = None) -> dict[str, Tensor]:
    given = {"CONTEXT_ID": Tensor("CONTEXT_ID", np.array([[name] for name in context_ids], object).reshape(-1, 1))}
    return given if k is None else given | {"NUM_CANDIDATES": Tensor("NUM_CANDIDATES", np.array([k], np.int32))}


def test_the_python_model_answers_as_the_retriever_does(model: Any, bundles: Path) -> None:
    retriever = Retriever.open(bundles)
    five, two = model.execute([request(b"5", b"17", k=5), request(b"999")])
    for row, context_id in enumerate(("5", "17")):
        expected = retriever.retrieve(context_id, 5)
        assert [item.decode() for item in five.tensors["ITEM_IDS"][row]] == expected.item_ids
        assert five.tensors["SCORES"][row].tolist() == pytest.approx(expected.scores, abs=1e-5)
        assert five.tensors["EXPERTS"][row].tolist() == expected.experts
    assert two.tensors["ITEM_IDS"].shape == (1, 10)


def test_what_the_python_model_gives_is_what_its_configuration_says(model: Any, repository: Path) -> None:
    (config,) = parsed(repository / "esr" / "config.pbtxt")
    assert (config["name"], config["backend"], config.get("max_batch_size", 0)) == ("esr", "python", 0)
    (answer,) = model.execute([request(b"5")])
    kinds = {"TYPE_STRING": np.dtype(object), "TYPE_FP32": np.dtype("f4"), "TYPE_INT64": np.dtype("i8")}
    said = {tensor["name"]: (kinds[tensor["data_type"]], len(tensor["dims"])) for tensor in config["output"]}
    assert said == {name: (values.dtype, values.ndim) for name, values in answer.tensors.items()}
    contexts, count = config["input"]
    assert (contexts["name"], contexts["data_type"], contexts["dims"]) == ("CONTEXT_ID", "TYPE_STRING", ["-1", "1"])
    assert (count["name"], count["data_type"], count["dims"]) == ("NUM_CANDIDATES", "TYPE_INT32", ["1"])
    assert count["optional"]


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (request(b"5", b"nobody"), "NOT_FOUND", "context_id (nobody) is not among the model's contexts"),
        (request(b"5", k=0), "INVALID_ARG", "num_candidates (0) must be from 1 to the model's 1000 items"),
        (request(), "INVALID_ARG", "CONTEXT_ID shape ([0, 1]) must be [B, 1] or [B] with B from 1 to 1024"),
        (request(b"\xff"), "INVALID_ARG", "CONTEXT_ID element 0 (b'\\\\xff') must be UTF-8"),
    ],
)
def test_a_refusal_leaves_the_other_requests_alone(asked: Any, code: str, message: str, model: Any) -> None:
    refused, answered = model.execute([asked, request(b"5")])
    assert refused.error == (code, message)
    assert answered.error is None


def test_a_changed_byte_keeps_the_python_model_from_loading(model: Any, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "esr", tmp_path / "esr")
    path = tmp_path / "esr" / "7" / "bundle" / "items.faiss"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"items.faiss was changed"):
        model.initialize({"model_repository": str(tmp_path / "esr"), "model_version": "7"})


def test_a_repository_is_written_whole_or_not_at_all(ranked: Path, tmp_path: Path) -> None:
    shutil.copytree(ranked, tmp_path / "7")
    (tmp_path / "7" / "ranker.onnx").write_bytes(b"changed")
    with pytest.raises(BundleCorruptError, match=r"ranker.onnx"):
        export_for_triton(tmp_path / "7", tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_the_command_writes_both_and_publishes_nothing_if_it_cannot(
    trained_run: Path, tmp_path: Path, refused: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: object) -> int:
        return main(Serving, "python -m serving", ["export", *map(str, arguments)], refusals=(UsageError,))

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    for taken in (tmp_path / "taken", tmp_path / "taken" / "file"):
        told = refused(command(trained_run, "--out", tmp_path / "bundles", "--triton", taken))
        assert f"triton ({taken}) is already there" in told
    assert not (tmp_path / "bundles").exists()
    models = tmp_path / "models"
    assert command(trained_run, "--out", tmp_path / "bundles", "--triton", models, "--json") == 0
    assert last_json(capsys.readouterr().out)["triton"] == str(models)
    exported = tmp_path / "bundles" / "1" / "user_tower.onnx"
    assert (models / "user_tower" / "1" / "model.onnx").read_bytes() == exported.read_bytes()
