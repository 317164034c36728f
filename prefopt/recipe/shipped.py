"""The recipes and studies that come with the package, found by name from any folder: `pocket/dpo`, `five_methods`."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from prefopt.support.errors import PrefoptError

PACKAGE = Path(__file__).parent.parent

SHIPPED = next(folder for folder in (PACKAGE / "shipped", PACKAGE.parent) if folder.is_dir())
"""The folder with `recipes/` and `experiments/`: in an installed package its own; in a checkout the repository's root."""


def found(path: str | Path) -> Path:
    """The file of that path; where there is none, the shipped recipe or study that goes by this name; else the path as it is.

    A name is the path below `recipes/` or `experiments/`, with or without its ending; of a study, its folder's will do.
    """
    file = Path(path).expanduser()
    if file.exists() or file.is_absolute():
        return file
    below = (SHIPPED, SHIPPED / "recipes", SHIPPED / "experiments")
    candidates = (folder / f"{file}{ending}" for folder in below for ending in ("", ".yaml", "/study.yaml"))
    return next((candidate for candidate in candidates if candidate.is_file()), file)


def shipped() -> Iterator[tuple[str, Path]]:
    """The name and file of everything that ships: recipes in the order of their names, then studies."""
    recipes, experiments = SHIPPED / "recipes", SHIPPED / "experiments"
    for file in sorted(recipes.rglob("*.yaml")):
        if file.with_suffix(".jsonl").exists():  # a judge's rubric, beside its worked examples
            continue
        yield str(file.relative_to(recipes).with_suffix("")), file
    for file in sorted(experiments.rglob("study.yaml")):
        yield str(file.parent.relative_to(experiments)), file


def summary(file: Path) -> str:
    """What a recipe says of itself: the first sentence of the comment that it begins with, or else its objective."""
    text = file.read_text(encoding="utf-8")
    if comment := re.match(r"(#.*\n)+", text):
        sentences = " ".join(line.lstrip("# ") for line in comment[0].splitlines())
        return re.split(r"(?<=[.:?]) ", sentences)[0].rstrip(".:")
    objective = re.search(r"^objective: (\{name: )?(\w+)", text, re.MULTILINE)
    return objective[2] if objective else ""


def copied(folder: Path) -> Path:
    """Copy recipes and studies, with what stands beside them, into a new folder, where they find each other as they do here.

    Raises:
        PrefoptError: the folder is there already.
    """
    if folder.exists():
        raise PrefoptError(f"{folder} is there already, and nothing is overwritten: name another")
    shutil.copytree(SHIPPED / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    for file in sorted((SHIPPED / "experiments").rglob("study.yaml")):
        copy = folder / file.relative_to(SHIPPED)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    return folder
