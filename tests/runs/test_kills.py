"""Killed at random moments and gone on with, every kind of work comes to the same; tests/_kills.py kills as often as one likes."""

import pytest
from _kills import WORK, Killer, prepare


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [name for name in WORK if not name.startswith("study")]
)  # which test_study_kill.py kills
def test_killed_twice_it_comes_to_the_same(home, name):
    assert Killer(name, home).differences(kills=2) == []
