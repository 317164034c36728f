"""Help that explains every field of a recipe."""

import shutil
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefopt.recipe import Described


def run_fields() -> "Iterator[Described]":
    """Of `prefopt run`."""

    from prefopt.recipe import Recipe, describe

    for field in describe(Recipe):
        if not field.key.startswith(("source.validation.", "source.test.")):  # the same as those of source
            yield field


def label_fields() -> "Iterator[Described]":
    """Of `prefopt label`."""

    from prefopt.recipe import describe
    from prefopt.runs.label import LabelRecipe

    return describe(LabelRecipe)


def with_fields(usual: Callable[[], str], fields: "Callable[[], Iterator[Described]]") -> Callable[[], str]:
    """Help that explains every field of a recipe; built only when it is asked for."""

    def format_help() -> str:
        from prefopt.recipe import Described

        base = Described("base", "text", "", "another recipe, relative to this one, that it refines")
        width = shutil.get_terminal_size().columns - 2
        lines = ["fields of a recipe, in its YAML or as key=value:"]
        for field in (base, *fields()):
            choices = f": {field.kind}" if "|" in field.kind and field.kind != "true | false" else ""
            default = f"({field.default})".replace(" ", "\xa0") if field.default else ""
            text = f"{field.description}{choices} {default}"
            head = f"  {field.key:<32} "
            if field.kind.startswith("section") and "." not in field.key:
                lines.append("")
            wrapped = textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head))
            lines += [line.replace("\xa0", " ") for line in wrapped]
        return (
            f"{usual()}\n" + "\n".join(lines) + "\n\n(The default is in parentheses.)\ndocs/recipes.md has examples.\n"
        )

    return format_help
