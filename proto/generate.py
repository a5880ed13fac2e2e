"""Generate the Python stubs of every proto into serving/wire (or elsewhere): `python proto/generate.py [DIRECTORY]`.

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
WIRE = PROTO.parent / "serving" / "wire"


def generate(target: Path) -> list[Path]:
    """Write <file>_pb2.py, .pyi and _pb2_grpc.py of every proto into `target`."""
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
        well_known = files("grpc_tools") / "_proto"
        rpc_types = Path(status_pb2.__file__).parents[2]  # googleapis-common-protos: google/rpc/status.proto
        outs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"-I{rpc_types}", *outs, *protos]):
            raise SystemExit("protoc failed")
        for stub in sorted(Path(scratch).rglob("*.py*")):
            text = re.sub("from (esr.v1|inference) import", "from serving.wire import", stub.read_text())
            (target / stub.name).write_text(text)
            written.append(target / stub.name)
    return written


if __name__ == "__main__":
    for path in generate(Path(sys.argv[1]) if len(sys.argv) > 1 else WIRE):
        print(path)
