"""What a run writes of itself is what docs/training.md says it writes."""

import re

from esr_trainer.metrics import METRICS
from tests.conftest import ROOT


def test_the_pages_table_explains_every_metric_in_its_words() -> None:
    page = (ROOT / "docs/training.md").read_text()
    table = page.partition("| metric | what it means |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.fullmatch(r"\| (.*?) \| (.*) \|", line) for line in table.splitlines()]
    named = []
    for row in rows:
        assert row is not None
        names, meaning = re.findall(r"`(\w+)`", row[1]), row[2]
        named += names
        said = METRICS[names[0]]
        assert said.endswith(meaning) if len(names) == 1 else meaning.startswith(said), names
    assert named == list(METRICS)
