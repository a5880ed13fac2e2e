"""Write docs/map.md: every module of the three packages with the first sentence of its docstring.

`python docs/map.py` from the repository's root; a test writes it anew and compares.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {
    "esr_trainer": "learn an ESR, from users or from a log",
    "serving": "publish and answer, without torch",
    "offline_eval": "judge checkpoints and logs; reproduce what was published",
}
GENERATED = ("wire",)
HEAD = """# What is where

One direction: context, logits, candidates, slate, reward, log-probability, step, checkpoint, bundle, Retrieve, feedback
log, verdict. `serving.export` imports the trainer, the server only its torch-free parts; `offline_eval` imports both; a
test holds all of them to it. Written by `python docs/map.py` from the modules' own first sentences.
"""


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    words = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    first = re.split(r"(?<=[^.])(?<!et al)\.(?:\s|$)", words, maxsplit=1)[0]
    return first.replace("|", "/")


def table(folder: Path) -> str:
    """A row per module of a folder."""
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    rows = [f"| `{path.name}` | {sentence(path)} |" for path in modules]
    return "\n".join(["| file | idea |", "|---|---|", *rows]) + "\n"


def written() -> str:
    """The page: a table per room, and one per room within it; generated code has none."""
    parts = [HEAD]
    for room, idea in ROOMS.items():
        parts += [f"## `{room}/`: {idea}\n", table(ROOT / room)]
        for package in sorted((ROOT / room).glob("*/__init__.py")):
            if package.parent.name not in GENERATED:
                parts += [f"### `{room}/{package.parent.name}/`: {sentence(package)}\n", table(package.parent)]
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "map.md").write_text(written())
