"""docs/architecture.md names places that are there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
STOPS = re.findall(r"^\d+\. (.+?)(?=^\d+\. |^$)", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("stop", STOPS)
def test_every_stop_of_the_walk_is_in_the_code(stop):
    head = stop.split(":")[0]
    files = re.findall(r"`([\w/]+\.py)`", head)
    modules = [
        importlib.import_module("prefopt." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
        for file in files
    ]
    for name in re.findall(r"`(\w+)(?:\.\w+)?`", head) if len(modules) == 1 else ():
        assert hasattr(modules[0], name), f"{name} is not in {files[0]}"
    assert files


def test_the_walk_has_the_length_that_the_page_says():
    assert len(STOPS) == 20 and "Twenty stops" in PAGE


def test_every_room_is_in_the_table():
    rooms = {p.name + "/" * p.is_dir() for p in (ROOT / "prefopt").iterdir() if not p.name.startswith("_")}
    named = set(re.findall(r"^\| `([\w./]+)` \|", PAGE.split("## The walk")[0], re.MULTILINE))
    assert rooms - {"py.typed"} <= named
