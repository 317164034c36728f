"""Users' own code, by file and by module."""

import sys
from dataclasses import dataclass

import pytest

from prefopt.support.errors import PrefoptError
from prefopt.support.plugins import checked_fields, load_object


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
