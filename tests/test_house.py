"""How the package is laid out, read from its source: rooms in an order, no circles, and nothing that has grown too large."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prefopt"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]

ORDER = (
    *("support", "types", "recipe", "data", "objectives", "policy", "environments", "feedback", "training"),
    *("sources", "evaluation", "runs", "study", "testbeds", "cli"),
)
"""A room imports from those before it; `types` and `recipe` import only `support`."""
APART = ("types", "recipe")

ENTRIES, FILE_LINES, FUNCTION_LINES, INIT_LINES = 16, 450, 60, 3
REPEATED_LINES = 12
"""As many lines, import lines and blank ones aside, may stand in two places."""


def module_of(file: Path) -> str:
    """The dotted name of a file."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


@cache
def imports_of(module: str) -> dict[str, int]:
    """The package's modules that a module imports anywhere (in functions and under TYPE_CHECKING, too), with the line."""
    imported: dict[str, int] = {}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            names = [full if (full := f"{source}.{alias.name}") in MODULES else source for alias in node.names]
        else:
            continue
        for name in names:
            if name in MODULES and name != module:
                imported.setdefault(name, node.lineno)
    return imported


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that names are imported from, written out where it is relative."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) + 1 - node.level] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def room_of(module: str) -> str:
    """The room, or the file at the root, that a module is in; the package itself for its `__init__`."""
    return module.split(".")[1] if "." in module else module


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Every function of a file and its lines, from `def` to its end."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_the_root_has_few_entries() -> None:
    entries = [entry.name for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= ENTRIES, sorted(entries)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_and_no_function_is_long(name: str) -> None:
    file = PACKAGE / name
    assert len(file.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    assert {function: lines for function, lines in functions(file) if lines > FUNCTION_LINES} == {}


def test_no_circle_of_imports() -> None:
    graph = {module: set(imports_of(module)) for module in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_entry_has_its_place_in_the_order() -> None:
    assert {room_of(module) for module in MODULES} - set(ORDER) == {"prefopt"}


@pytest.mark.parametrize("room", ORDER)
def test_imports_follow_the_order_of_rooms(room: str) -> None:
    if room in APART:
        allowed = {room, "support"}
    else:
        allowed = {*ORDER[: ORDER.index(room) + 1], *APART} - (set(APART) if room == "support" else set())
    against = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for module in MODULES
        if room_of(module) == room
        for name, line in imports_of(module).items()
        if room_of(name) not in allowed
    ]
    assert against == []


@pytest.mark.parametrize("room", [room for room in ORDER if (PACKAGE / room).is_dir()])
def test_a_room_says_what_it_holds_and_what_it_imports(room: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= INIT_LINES and re.search(r"\b[iI]mports?\b", text)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs", "experiments", "recipes"])
def test_pages_name_files_that_exist(page: str) -> None:
    """Paths that begin with a folder of the repository or a room of the package; files of other projects do not."""
    begins = "|".join([*ORDER, *(entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name[0].isalpha())])
    path = re.compile(rf"(?<![\w/-])(?:{begins})/[\w/]+\.py\b")
    pages = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).rglob("*.md"))
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in pages
        for name in path.findall(file.read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and not (PACKAGE / name).exists()
    ]
    assert missing == []


def test_no_name_of_a_room_hides_a_module_of_it() -> None:
    """`import prefopt.feedback.judges.server as server` fails where `prefopt.feedback` calls something else `judges`."""
    hidden = [
        f"{package}.{name}"
        for package, file in MODULES.items()
        if file.name == "__init__.py"
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        for name in _names_made(node)
        if f"{package}.{name}" in MODULES
    ]
    assert hidden == []


def _names_made(node: ast.stmt) -> list[str]:
    """What a statement of a module's top level calls something other than a module."""
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def test_the_tree_in_the_readme_is_the_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## What is where")[1].split("```")[1]
    listed = re.findall(r"^  ([a-z]+)(?:/|\.py)", tree, re.MULTILINE)
    entries = {entry.stem for entry in PACKAGE.iterdir() if entry.name[0].isalpha()}
    assert set(listed) == entries and listed == sorted(listed, key=lambda name: ("types", *ORDER).index(name))


def test_no_long_run_of_lines_stands_twice() -> None:
    first: dict[tuple[str, ...], str] = {}
    twice = []
    for file in FILES:
        lines = [
            (number, line.strip())
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
            if line.strip() and not re.match(r"\s*(from|import) ", line)
        ]
        for start in range(len(lines) - REPEATED_LINES):
            run = tuple(text for _, text in lines[start : start + REPEATED_LINES + 1])
            place = f"{file.relative_to(PACKAGE)}:{lines[start][0]}"
            if first.setdefault(run, place) != place:
                twice.append(f"{place} is {first[run]}")
    assert twice == []
