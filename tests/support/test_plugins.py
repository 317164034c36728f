"""Users' own code, by file and by module."""

import sys
from dataclasses import dataclass

import pytest

from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.plugins import LATER, NotYet, check_call, checked_fields, load_object, make


def test_a_file_has_one_module_until_it_is_edited(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("class A:\n    number = 1\n")
    first = load_object(f"{file}:A")
    monkeypatch.chdir(tmp_path)
    assert load_object("mine.py:A") is first is load_object("mine.py:A", tmp_path)
    file.write_text("class A:\n    number = 2\n")
    assert load_object("mine.py:A").number == 2 and first.number == 1


def test_the_recipes_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("where = 'here'")
    (tmp_path / "sub/a.py").write_text("where = 'sub'")
    monkeypatch.chdir(tmp_path)
    assert load_object("a.py:where", tmp_path / "sub") == "sub"
    assert load_object("a.py:where") == "here"


def test_a_module_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_lab_of_tests").mkdir()
    (tmp_path / "my_lab_of_tests/losses.py").write_text("x = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert load_object("my_lab_of_tests.losses:x") == 3
    assert load_object("math:pi") > 3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mine", "names no object: write `package.module:Name` or `file.py:Name`"),
        ("mine.py", "names no object"),
        ("mine.py:", "names no object"),
        ("mnie.py:f", "no file mnie.py; looked in"),
        ("mnie.py:f", "Did you mean 'mine.py'?"),
        ("mine.py:functon", "mine.py has no 'functon'. Did you mean 'function'?"),
        ("no_such_module.at_all:f", "no module 'no_such_module'"),
        ("json.nothing:f", "no module 'json.nothing'"),
        ("syntax.py:f", "syntax.py:2 fails to import: SyntaxError"),
        ("raises.py:f", "raises.py:3 fails to import: ZeroDivisionError: division by zero"),
        ("exits.py:f", "exits.py:2 fails to import: SystemExit"),
        ("needs.py:f", "needs.py:1 fails to import: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_what_cannot_be_loaded(tmp_path, monkeypatch, path, expected):
    (tmp_path / "mine.py").write_text("def function(): ...\n")
    (tmp_path / "syntax.py").write_text("x = 1\ny = = 2\n")
    (tmp_path / "raises.py").write_text("x = 0\n\ny = 1 / x\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needs.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrefoptError) as caught:
        load_object(path)
    assert expected in str(caught.value)


def test_a_file_that_fails_is_tried_again(tmp_path):
    file = tmp_path / "flaky.py"
    file.write_text(f"import pathlib\nassert pathlib.Path({str(tmp_path / 'there')!r}).exists()\nx = 1\n")
    with pytest.raises(PrefoptError, match=r"flaky\.py:2"):
        load_object(f"{file}:x")
    (tmp_path / "there").touch()
    assert load_object(f"{file}:x") == 1


@dataclass(frozen=True)
class Settings:
    beta: float = 0.1
    shape: tuple[int, ...] = (1,)
    mode: str = "a"
    other: object = None


def test_fields_are_brought_to_their_types():
    plain = Settings(beta=0.3)
    assert checked_fields(plain, "it") is plain
    assert checked_fields(Settings("0.3", [1, 2]), "it") == Settings(0.3, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(PrefoptError, match="it: field 'beta' must be a valid number, got '0,1'"):
        checked_fields(Settings("0,1"), "it")  # type: ignore[arg-type]


class Plain:
    def __init__(self, size, policy, tokenizer=None):
        self.size, self.policy, self.tokenizer = size, policy, tokenizer


KNOWN = {"Settings": Settings, "Plain": Plain}


def made(name, running=None, **fields):
    return make(name, fields, "thing", known=KNOWN, where="here", running=running or {})


def test_an_object_is_made_from_a_name_or_given():
    assert made("Settings", beta="0.3") == Settings(0.3)
    assert made(Given(Settings), shape=[1, 2]) == Settings(shape=(1, 2))
    assert made(Given(Settings(0.2, mode="b")), beta="0.3") == Settings(0.3, mode="b")
    assert made(Given(make)) is make


def test_a_constructor_asks_for_what_runs_by_parameter_name():
    running = {"policy": "the policy", "tokenizer": "the tokenizer", "accelerator": "not asked for"}
    plain = made("Plain", running, size=3)
    assert (plain.size, plain.policy, plain.tokenizer) == (3, "the policy", "the tokenizer")
    later = made("Plain", dict.fromkeys(running, LATER), size=3)
    assert later == NotYet("Plain")
    with pytest.raises(PrefoptError, match="made when the run has loaded its models"):
        later()


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("Setting", {}, "here: unknown thing 'Setting'. Did you mean 'Settings'? Known: Settings, Plain."),
        ("Settings", {"bta": 1}, "here: Settings has no field 'bta'. Did you mean 'beta'? It has: beta, shape, mode"),
        ("Settings", {"beta": "x"}, "here: Settings: field 'beta' must be a valid number"),
        ("Plain", {}, "here: Plain needs 'size'; beside fields of the recipe, it can ask for policy"),
        ("Plain", {"size": 1, "policy": 2}, "here: Plain has no field 'policy'"),
        (Given(make), {"size": 1}, "is a function, which has no fields (size); make it a dataclass with __call__"),
        (Given(Plain(1, 2)), {"size": 1}, "is made already, of class Plain, which has no fields (size)"),
        (Given(Settings()), {"bta": 1}, "has no field 'bta'. Did you mean 'beta'?"),
    ],
)
def test_what_cannot_be_made(name, fields, expected):
    with pytest.raises(PrefoptError) as caught:
        made(name, {"policy": None}, **fields)
    assert expected in str(caught.value)


def test_a_call_is_checked_before_it_is_made():
    check_call(lambda prompts, completions, rows: 0, ("prompts", "completions", "rows"), "it")
    check_call(max, ("prompts", "completions"), "it")
    with pytest.raises(PrefoptError, match=r"it is called with \(prompts, rows\), and its parameters are \(prompts\)"):
        check_call(lambda prompts: 0, ("prompts", "rows"), "it")
    with pytest.raises(PrefoptError, match="it cannot be called: a float is no function"):
        check_call(0.5, ("prompts",), "it")
