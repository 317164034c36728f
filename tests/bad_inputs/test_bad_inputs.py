"""Bad inputs on every surface are answered by a sentence that says what, where and what to do, and by the exit status.

The tables are in `tables/`, a file for each surface. The soundness of the tables is tested, too: what they start from is accepted,
so a refusal is of what a case puts there; and a case's remedy is accepted, so its advice is good.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import world
from _server import Loopback
from answering import Answer, answer
from broken_models import make_models
from case import SURFACES, Case, cases, read

pytestmark = pytest.mark.slow

CASES = [case for surface in SURFACES for case in cases(surface)]
REMEDIES = [case.remedy for case in CASES if case.remedy is not None]
LETTERS = 1200
"""That a sentence may have."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and the folder of a run that is over."""
    folder = tmp_path_factory.mktemp("models")
    made = make_models(folder / "models")
    more = ["train.steps=3", "train.checkpoint_every=2", "--out", "models/finished"]
    given = answer(["run", "recipe.yaml", *more], world.make(folder, made, {}), world.environment(folder, 0))
    assert given.status == 0, given.err
    return made


@pytest.fixture(scope="session")
def server() -> Iterator[Loopback]:
    with Loopback(table={"": {" w1": 0.5, " w2": 0.3, " w3": 0.2}}).running() as loopback:
        yield loopback


@pytest.fixture
def ask(tmp_path: Path, models: Path, server: Loopback) -> Any:
    """Answers a case, in a world of its own."""

    def asked(case: Case) -> Answer:
        here = world.make(tmp_path, models, case.files)
        server.faults = [] if case.replies is None else [world.reply(case.replies)] * 1000
        variables = world.environment(tmp_path, server.port) | case.environment
        given = answer(case.command, here, variables)
        assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "home").iterdir()) == []
        return given

    return asked


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_bad_input_is_answered_in_a_sentence(case: Case, ask: Any) -> None:
    given = ask(case)
    assert given.status == case.status, given.err
    assert "Traceback" not in given.out + given.err
    said = " ".join(given.sentence.split())
    assert [words for words in (*case.names, *case.advises) if not re.search(words, said)] == [], said
    assert case.status != 2 or (len(said) <= LETTERS and len(given.sentence.splitlines()) <= case.lines)
    assert [name for name in given.new if not (case.leaves and re.match(case.leaves, name))] == []
    assert [name for name in given.changed if not (case.changes and re.match(case.changes, name))] == []


@pytest.mark.parametrize("case", REMEDIES, ids=lambda case: case.id)
def test_the_remedy_is_accepted(case: Case, ask: Any) -> None:
    given = ask(case)
    assert given.status == 0, given.err


@pytest.mark.parametrize(
    ("surface", "command"), [(surface, command) for surface in SURFACES for command in read(surface)["good"]]
)
def test_what_a_table_starts_from_is_accepted(surface: str, command: str, ask: Any) -> None:
    given = ask(Case(surface, command, tuple(shlex.split(command)), read(surface).get("files", {})))
    assert given.status == 0, given.err


def test_properties_are_distinct_and_every_case_expects_words() -> None:
    assert [name for name, count in Counter(case.property for case in CASES).items() if count > 1] == []
    assert [case.property for case in CASES if not case.names] == []
    assert [case.property for case in CASES if case.status == 2 and not case.advises] == []
