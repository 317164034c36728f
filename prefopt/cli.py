"""The command line. Heavy imports wait until a verb needs them."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from prefopt.errors import PrefoptError

if TYPE_CHECKING:
    from prefopt.estimates import Estimate
    from prefopt.recipe import Recipe

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; what a user can put right is printed without a traceback, with exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.verb(options)
    except PrefoptError as error:
        err.print(f"[bold red]error[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; what was done is kept (--resume goes on from the last checkpoint)")
        sys.exit(130)


def run(options: argparse.Namespace) -> None:
    """`prefopt run`."""
    from prefopt import runs

    folder = Path(options.out) if options.out else None
    if Path(options.recipe).is_dir():
        if not options.resume or options.overrides:
            raise PrefoptError(
                f"{options.recipe} is a run folder; resume it, without overrides: prefopt run {options.recipe} --resume"
            )
        folder = Path(options.recipe)
        settings = runs.saved_recipe(folder)
    else:
        settings = _recipe(options)
        if options.resume and folder is None:
            folder = runs.unfinished(settings)
    if options.dry_run:
        return _dry_run(settings)
    _quiet_libraries()
    _print_result(runs.run(settings, folder, options.resume, err))


def evaluate(options: argparse.Namespace) -> None:
    """`prefopt evaluate`."""
    from prefopt import inspection

    _quiet_libraries()
    evaluation = inspection.evaluate(_target(options), err)
    table = Table(
        "metric", "estimate", f"{evaluation.confidence:.0%} interval", "prompts", title=f"{options.target}: test split"
    )
    for name, e in evaluation.estimates().items():
        table.add_row(name, f"{e.value:.4f}", f"[{e.low:.4f}, {e.high:.4f}]".replace("[", r"\["), str(e.prompts))
    for name, value in evaluation.numbers.items():
        table.add_row(name, f"{value:.4f}", "", "")
    out.print(table)
    if options.out:
        target = Path(options.out)
        if target.exists():
            raise PrefoptError(f"{target} is there already, and nothing is overwritten: name another")
        target.write_text(evaluation.to_json())


def sample(options: argparse.Namespace) -> None:
    """`prefopt sample`."""
    from prefopt import inspection

    _quiet_libraries()
    for prompt, completions in inspection.sample(_target(options), options.prompt, options.number, options.completions):
        out.print(f"[bold]{_escaped(prompt)}[/]")
        for completion in completions:
            out.print(f"  → {_escaped(completion)}")


def check(options: argparse.Namespace) -> None:
    """`prefopt check`."""
    from prefopt.checks import check_objective
    from prefopt.objectives import load_objective

    fields = {key: _value(text) for key, _, text in (f.partition("=") for f in options.fields)}
    objective = load_objective(options.objective, **fields)
    for name in check_objective(objective):
        out.print(f"[green]✓[/] {name}")
    out.print(f"{type(objective).__name__} keeps the contract")


def objectives(options: argparse.Namespace) -> None:
    """`prefopt objectives`."""
    from prefopt.catalogue import entries

    table = Table("name", "arXiv", "needs", "defaults", "what it is")
    for entry in entries():
        table.add_row(*entry)
    out.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefopt",
        description="Preference-optimization research: everything else equal, what does this objective do?",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(function: Callable[[argparse.Namespace], None], help: str, **more: Any) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            function.__name__, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter, **more
        )
        made.set_defaults(verb=function)
        return made

    made = verb(run, "train one recipe")
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file; with --resume, also a run folder")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.lr=1e-6 objective.beta=0.3")
    made.add_argument("--out", metavar="DIR", help="the run folder; must be new")
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the unfinished run")
    made.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved recipe, load no model"
    )
    made.format_help = _with_fields(made.format_help)  # type: ignore[method-assign]
    made = verb(evaluate, "measure a policy on held-out data, with intervals")
    made.add_argument(
        "target", metavar="RECIPE|RUN", help="a recipe (its policy before training) or a finished run folder"
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    made.add_argument("--out", metavar="FILE", help="also write every observation, as JSON")
    made = verb(sample, "generate from a policy")
    made.add_argument(
        "target", metavar="RECIPE|RUN", help="a recipe (its policy before training) or a finished run folder"
    )
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as evaluate.sampling.temperature=0.7"
    )
    made.add_argument("--prompt", action="append", help="your own; may be given again (default: held-out prompts)")
    made.add_argument("--number", type=int, default=5, help="of held-out prompts (default: 5)")
    made.add_argument("--completions", type=int, default=1, help="of each prompt (default: 1)")
    made = verb(check, "run the contract on an objective, yours or the catalogue's")
    made.add_argument("objective", metavar="PATH:CLASS", help="file.py:Class, package.module:Class or a catalogue name")
    made.add_argument("fields", nargs="*", metavar="field=value", help="hyperparameters")
    verb(objectives, "list the catalogue: name, paper, needs, defaults")
    return parser


def _with_fields(usual: Callable[[], str]) -> Callable[[], str]:
    """Help that explains every field of a recipe; made only when it is asked for."""

    def format_help() -> str:
        from prefopt.recipe import Recipe, describe

        lines = [f"  {f.key:<34}{f.description}{f' [{f.default}]' if f.default else ''}" for f in describe(Recipe)]
        return (
            f"{usual()}\nfields of a recipe, [default]:\n"
            + "\n".join(lines)
            + "\n\n  base: FILE inherits another recipe; docs/recipes.md has examples.\n"
        )

    return format_help


def _recipe(options: argparse.Namespace) -> "Recipe":
    from prefopt.recipe import load_recipe

    return load_recipe(options.recipe, options.overrides)


def _target(options: argparse.Namespace) -> "Recipe":
    """The recipe of a file, or of a run folder with the trained policy in place of the one it started from."""
    from prefopt.inspection import trained
    from prefopt.recipe import load_recipe

    folder = Path(options.target)
    return trained(folder, options.overrides) if folder.is_dir() else load_recipe(folder, options.overrides)


def _dry_run(settings: "Recipe") -> None:
    from prefopt import runs

    plan = runs.plan(settings)
    out.print(settings.to_yaml(), end="")
    rows = ", ".join(f"{len(part)} {name}" for name, part in plan.data._asdict().items())
    out.print(f"# {plan.steps} steps on {plan.model}; rows: {rows}")


def _print_result(result: Any) -> None:
    """What changed on held-out rows: the numbers that a reader wants, and where the rest is."""
    table = Table("held-out metric", "before", "after", "change, paired by prompt", title=f"{result.folder}")
    for name, e in result.after.items():
        before, change = result.before.get(name), result.change.get(name)
        table.add_row(name, _interval(before), _interval(e), _interval(change))
    out.print(table)
    out.print(f"Results are in {result.folder}/: summary.json, metrics.jsonl, evaluations/ (with samples), policy/")


def _interval(e: "Estimate | None") -> str:
    return "" if e is None else str(e).replace("[", r"\[")


def _value(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _quiet_libraries() -> None:
    """Warnings of libraries and ours as lines for people, their progress bars off."""
    import logging

    import transformers
    from rich.logging import RichHandler

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    handler = RichHandler(console=err, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


if __name__ == "__main__":
    main()
