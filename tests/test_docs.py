"""Pages that are written by scripts are what the scripts write."""

import runpy

from tests.conftest import ROOT


def test_the_map_is_what_the_modules_say_of_themselves():
    written = runpy.run_path(str(ROOT / "docs" / "map.py"))["written"]()
    assert (ROOT / "docs" / "map.md").read_text() == written, "run python docs/map.py"
