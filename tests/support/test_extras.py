import random

import pytest

from prefopt import PrefoptError
from prefopt.support.extras import extra


def test_a_package_that_is_missing_is_named_with_what_installs_it():
    with pytest.raises(
        PrefoptError, match=r"the game needs the package no_such_package \(.*pip install 'prefopt-research\[agents\]'"
    ):
        extra("no_such_package", "agents", "the game")


def test_importing_leaves_random_numbers_alone(tmp_path, monkeypatch):
    (tmp_path / "draws.py").write_text("import random\nrandom.seed(1)\nnumber = random.random()\n")
    monkeypatch.syspath_prepend(tmp_path)
    random.seed(2)
    before = random.getstate()
    assert extra("draws", "agents", "it").number and random.getstate() == before
