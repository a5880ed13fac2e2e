"""`python -m offline_eval tables`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from esr_trainer.command_line import Command


class Tables(Command):
    """Write the tables of README.md and docs/results.md from the stored results, and the figures beside the results.

    A table stands between `<!-- results of NAME -->` and `<!-- end -->`, NAME as of `reproduce`; what was not run
    says so.
    """

    pages: Sequence[Path] = (Path("README.md"), Path("docs/results.md"))
    """Markdown files."""
    results: Path = Path("offline_eval/results")
    """Folder of the results."""
    budget: Literal["smoke", "short", "paper"] = "short"
    """Whose runs are shown."""
    pdf: bool = False
    """Write the figures as PDF too, beside PNG and SVG."""

    def run(self) -> Mapping[str, Any]:
        """Rewrite the pages whose tables are not what the results say; draw what they name."""
        from offline_eval.report.pages import figures_of, names_in, rewritten
        from offline_eval.reproduce.plots import endings, save

        changed: list[str] = []
        names: list[str] = []
        for path in self.pages:
            page = path.read_text()
            names += names_in(page)
            if (new := rewritten(page, self.results, self.budget)) != page:
                path.write_text(new)
                changed.append(str(path))
        print(f"written: {', '.join(changed) or 'nothing, the tables are those of the results'}")
        figures = {
            figure: draw
            for name in dict.fromkeys(names)
            for figure, draw in figures_of(name, self.results, self.budget).items()
        }
        drawn = [
            str(path) for name, draw in figures.items() for path in save(draw(), self.results / name, endings(self.pdf))
        ]
        print(f"figures: {', '.join(drawn) or 'none'}")
        return {"changed": changed, "figures": drawn}
