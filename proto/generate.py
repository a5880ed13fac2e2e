"""Generate the Python stubs of every proto: `python proto/generate.py [ROOT]`, the repository's root by default.

The descriptors keep the name <package>/<file>.proto that every language's stubs register; only the Python import of one
stub by another is turned to the package that the stubs live in.
"""

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

PROTO = Path(__file__).parent
HOMES = {"relevance": "esr_trainer/wire"}
"""Proto -> the folder of its stubs, where it is not serving's: a room has the stubs that it speaks by."""
SERVING = "serving/wire"


def generate(root: Path) -> list[Path]:
    """Write <file>_pb2.py, .pyi and _pb2_grpc.py of every proto into its folder below `root`."""
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
        well_known = files("grpc_tools") / "_proto"
        rpc_types = Path(status_pb2.__file__).parents[2]  # googleapis-common-protos: google/rpc/status.proto
        outs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"-I{rpc_types}", *outs, *protos]):
            raise SystemExit("protoc failed")
        for stub in sorted(Path(scratch).rglob("*.py*")):
            home = HOMES.get(stub.name.partition("_pb2")[0], SERVING)
            package = home.replace("/", ".")
            text = re.sub("from (esr.v1|inference) import", f"from {package} import", stub.read_text())
            (root / home).mkdir(parents=True, exist_ok=True)
            (root / home / stub.name).write_text(text)
            written.append(root / home / stub.name)
    return written


if __name__ == "__main__":
    for path in generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO.parent):
        print(path)
