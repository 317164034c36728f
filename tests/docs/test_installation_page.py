"""docs/installation.md names every extra that there is, and docs/README.md every page."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "installation.md").read_text()
    assert set(extras) == {
        name for line in re.findall(r"^\| `.*?\|", page, re.M) for name in re.findall(r"`(.*?)`", line)
    }


def test_the_index_has_every_page_and_no_other():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert linked == {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
