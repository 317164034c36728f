"""Rubrics in recipes and files: YAML with a jinja2 template for each section, and worked examples as data."""

import json
import logging
from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prefopt import recipe
from prefopt.feedback.judges.old_rubric import in_yaml, translated
from prefopt.feedback.judges.rubric import NAMES, TEXTS, Rubric
from prefopt.feedback.judges.template import Template
from prefopt.support.errors import PrefoptError, nearest

log = logging.getLogger(__name__)

SHIPPED = "prefopt.feedback.judges.rubrics"


def _label(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("yes, no, on and off are truth values in YAML; put labels into quotation marks")
    return str(value) if isinstance(value, int | float) else value


class RubricSection(recipe.Section):
    """What a judge is asked, as a recipe's `rubric:` or a file of its own."""

    question: str = Field(min_length=1, description="the user's turn")
    system: str | None = Field(None, description="the system turn")
    thought: str | None = Field(None, description="asks for a rationale, at the end of the user's turn")
    rationale: str = Field("{{ rationale }}", description="how a rationale stands before the answer")
    answer: str = Field("", description="how the answer begins; a label follows it directly")
    labels: tuple[Annotated[str, BeforeValidator(_label)], ...] = Field((), description="what a verdict may be")
    principles: tuple[str, ...] = Field((), description="of which each prompt gets one, `{{ principle }}`")
    example: str | None = Field(None, description="how an example looks where `{{ examples }}` lists them")
    examples: str | tuple[dict[str, Any], ...] | None = Field(
        None,
        description="worked examples, or a JSONL file of them; null is the file of the rubric's name, where there is one",
    )


def load_rubric(rubric: str | Mapping[str, Any]) -> Rubric:
    """A rubric, with its examples.

    Args:
        rubric: the section of a recipe; a YAML file; the name of one that comes with prefopt (`pairwise`, `expected`, …); or
            `package:file`, in a package.

    Raises:
        PrefoptError: there is none, or it is malformed; says where.
    """
    if not isinstance(rubric, str):
        return make_rubric(rubric, "rubric")
    package, _, resource = rubric.rpartition(":")
    file, folder = Path(rubric).expanduser(), _folder_of(package or SHIPPED)
    places = [file, *([] if folder is None else [folder / (resource if package else f"{resource}.yaml")])]
    if rubric.endswith(".txt"):  # rubrics that came with prefopt had this ending, in recipes of the previous version
        places += [file.with_suffix(".yaml"), *([] if folder is None else [folder / f"{Path(resource).stem}.yaml"])]
    for place in places:
        if place.is_file():
            with as_file(place) as path:
                return _read(path)
    known = sorted(path.name.removesuffix(".yaml") for path in files(SHIPPED).iterdir() if path.name.endswith(".yaml"))
    raise PrefoptError(
        f"no rubric {rubric}: it is no file, and none of prefopt's own ({', '.join(known)}).{nearest(rubric, known)}"
    )


def make_rubric(tree: Mapping[str, Any], name: str, beside: Path | None = None) -> Rubric:
    """The rubric that a section of a recipe describes.

    Args:
        tree: the section.
        name: what messages call it.
        beside: a JSONL file with its examples, where the section names none; None is none.

    Raises:
        PrefoptError: it is malformed; says where.
    """
    section = recipe.checked(RubricSection, tree, name)
    sources = {key: value for key in NAMES if (value := getattr(section, key)) and key in tree}
    templates = {key: Template(source.strip("\n"), f"{name}: {key}") for key, source in sources.items()}
    for key, template in templates.items():
        template.check(NAMES[key])
    used = set[str]().union(*(template.names for template in templates.values()))
    for word, key in (("examples", "example"), ("principle", "principles")):
        if (word in used) != bool(getattr(section, key)):
            raise PrefoptError(f"{name}: `{key}` and {{{{ {word} }}}} go together; one of them is missing")
    if len({label.strip() for label in section.labels}) < len(section.labels):
        raise PrefoptError(f"{name}: two labels are the same")
    if not all(label.strip() for label in section.labels):
        raise PrefoptError(f"{name}: a label of nothing but space")
    given = section.examples
    if isinstance(given, str):
        beside, given = Path(given).expanduser(), None
        if not beside.is_file():
            raise PrefoptError(f"{name}: no file of examples {beside}")
    examples_name = str(beside) if given is None else f"{name}: examples"
    examples = tuple(given if given is not None else _lines_of(beside) if beside else ())
    _complete(examples, templates.get("example", templates["question"]), examples_name)
    return Rubric(name, templates, section.labels, examples, section.principles, examples_name)


def parse_rubric(text: str, name: str, beside: Path | None = None) -> Rubric:
    """The rubric in a text of the previous version: sections under [headers], with placeholders in single braces.

    Raises:
        PrefoptError: it is malformed; says which line.
    """
    tree = translated(text, name)
    if "question" not in tree:
        raise PrefoptError(f"{name}: `question` is missing: a section [question], the user's turn")
    return make_rubric(tree, name, beside)


def _read(file: Path) -> Rubric:
    beside = file.with_suffix(".jsonl")
    examples = beside if beside.is_file() else None
    if file.suffix in (".yaml", ".yml"):
        tree = recipe.read(file)
        del tree["name"]  # which every file of a recipe gets
        return make_rubric(tree, str(file), examples)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PrefoptError(f"{file} is not UTF-8: {error}") from error
    rubric = parse_rubric(text, str(file), examples)
    log.warning(
        "%s: rubrics are YAML with jinja2 templates now (docs/judges.md); this form is read for one more version. The same in the "
        "new form, for a file %s:\n%s",
        file,
        file.with_suffix(".yaml").name,
        in_yaml(translated(text, str(file))),
    )
    return rubric


def _lines_of(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PrefoptError(f"{file} is not UTF-8: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            raise PrefoptError(f"{file}:{number}: an empty line; every line is an example")
        try:
            example = json.loads(line)
        except json.JSONDecodeError as error:
            raise PrefoptError(f"{file}:{number}: not JSON: {error}") from error
        if not isinstance(example, dict):
            raise PrefoptError(f"{file}:{number}: an example is an object, not a {type(example).__name__}")
        yield example


def _complete(examples: tuple[Mapping[str, Any], ...], template: Template, name: str) -> None:
    """Refuse examples without a verdict, or without a text that is shown of each."""
    needed = template.names & set(TEXTS) | {"verdict"}
    for number, example in enumerate(examples, 1):
        if missing := sorted(needed - example.keys()):
            raise PrefoptError(f"{name}:{number}: the example has no {missing[0]!r}.{nearest(missing[0], example)}")


def _folder_of(package: str) -> Any:
    """A package's files; None where there is no such package."""
    try:
        return files(package)
    except (ImportError, TypeError, ValueError):
        return None
