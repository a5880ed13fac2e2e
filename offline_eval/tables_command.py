"""`python -m offline_eval tables`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from esr_trainer.command_line import Command


class Tables(Command):
    """Write the tables of README.md and docs/results.md from the stored results.

    A table stands between `<!-- results of NAME -->` and `<!-- end -->`, NAME as of `reproduce`; what was not run
    says so.
    """

    pages: Sequence[Path] = (Path("README.md"), Path("docs/results.md"))
    """Markdown files."""
    results: Path = Path("offline_eval/results")
    """Folder of the results."""
    budget: Literal["smoke", "short", "paper"] = "short"
    """Whose runs are shown."""

    def run(self) -> Mapping[str, Any]:
        """Rewrite the pages whose tables are not what the results say."""
        from offline_eval.pages import rewritten

        changed = []
        for path in self.pages:
            page = path.read_text()
            if (new := rewritten(page, self.results, self.budget)) != page:
                path.write_text(new)
                changed.append(str(path))
        print(f"written: {', '.join(changed) or 'nothing, the tables are those of the results'}")
        return {"changed": changed}
