"""The command line. Heavy imports wait until a verb needs them."""

import argparse
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from prefopt.runs.results import show_evaluation, show_labelled, show_result
from prefopt.support.allocator import keep_freed_memory
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole
from prefopt.support.logs import quiet_libraries

if TYPE_CHECKING:
    from prefopt.recipe import Described, Recipe

Verb = Callable[[Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]
"""Adds a verb, which is a function, with its help."""

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; what a user can put right is printed without a traceback, with exit status 2."""
    options = _options(arguments)
    keep_freed_memory()
    try:
        options.verb(options)
    except PrefoptError as error:
        err.print(f"[bold red]error[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as error:
        # An exit that a user's function asked for would pass for the end of what was to be done.
        where = traceback.extract_tb(error.__traceback__)[-1]
        if Path(where.filename).is_relative_to(Path(__file__).parent):
            raise
        place = f"{where.filename}:{where.lineno}"
        err.print(
            f"[bold red]error[/] {_escaped(f'{place} called sys.exit({error.code!r}); raise an error instead')}",
            soft_wrap=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        on = (
            "the same command goes on"
            if options.verb in (label, study)
            else "--resume goes on from the last checkpoint"
        )
        err.print(f"interrupted; what was done is kept ({on})")
        sys.exit(130)


def run(options: argparse.Namespace) -> None:
    """`prefopt run`."""
    from prefopt.runs.folder import RunFolder
    from prefopt.runs.inspecting import unfinished
    from prefopt.runs.results import show_profile
    from prefopt.runs.run import run as train
    from prefopt.support.profile import profiling
    from prefopt.training.devices import end_processes

    folder = Path(options.out) if options.out else None
    if Path(options.recipe).is_dir():
        folder = Path(options.recipe)
        settings = RunFolder(folder).recipe()
        if not options.resume or options.overrides or options.out:
            raise PrefoptError(f"{folder} is a run folder; all it can do is go on: prefopt run {folder} --resume")
    else:
        settings = _recipe(options)
        if options.resume and folder is None:
            folder = unfinished(settings)
    quiet_libraries()
    if options.dry_run:
        return _dry_run(settings)
    with profiling() if options.profile else nullcontext() as clock:
        result = train(settings, folder, options.resume, err)
    end_processes()
    err.print()
    show_result(out, result, result.rows, settings.evaluate.confidence)
    if clock is not None:
        show_profile(out, clock)


def study(options: argparse.Namespace) -> None:
    """`prefopt study`."""
    from prefopt.study import load_study, run_study
    from prefopt.study.plan import StudyPlan
    from prefopt.study.run import check, study_folder, what_failed
    from prefopt.support.sharing import sharing

    settings = load_study(options.study, options.overrides)
    quiet_libraries()
    planned = StudyPlan(settings, study_folder(settings, options.out))
    if not options.dry_run:
        run_study(settings, options.out, options.jobs, console=out)
        if failed := what_failed(planned):
            err.print(_escaped(failed))
            sys.exit(1)
        return
    from prefopt.study.preview import show_plan

    with sharing():
        check(planned)
        show_plan(planned, options.jobs, out, timed=not options.untimed)


def evaluate(options: argparse.Namespace) -> None:
    """`prefopt evaluate`."""
    from prefopt.recipe import sections_of
    from prefopt.runs import inspecting

    target = Path(options.out) if options.out else None
    if target is not None and target.exists():
        raise PrefoptError(f"{target} is there already, and nothing is overwritten: name another")
    quiet_libraries()
    if not Path(options.target).is_dir() and "judge" in sections_of(options.target):
        return _evaluate_judge(options, target)
    evaluation = inspecting.evaluate(_target(options), err)
    title = f"{options.target}: test rows, with {evaluation.confidence:.0%} intervals"
    show_evaluation(out, title, evaluation.estimates(), evaluation.numbers)
    _keep(target, evaluation.to_json())


def _evaluate_judge(options: argparse.Namespace, target: Path | None) -> None:
    """A judge against people, and against what the recipe requires of it."""
    from prefopt.evaluation.judges.report import JudgeRecipe, report
    from prefopt.feedback.judges.trust import untrusted
    from prefopt.recipe import load

    settings = load(JudgeRecipe, options.target, options.overrides)
    judged = report(settings, err)
    title = f"{options.target}: {settings.judge.name} against people, with {judged.confidence:.0%} intervals"
    show_evaluation(out, title, judged.estimates, judged.numbers)
    out.print("Each line: docs/judges.md", style="dim")
    _keep(target, judged.to_json())
    if doubt := untrusted(judged.estimates, settings.require):
        raise PrefoptError(f"the judge does not keep what {options.target} requires: {doubt}")


def _keep(target: Path | None, text: str) -> None:
    """Write a file that was asked for."""
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)


def sample(options: argparse.Namespace) -> None:
    """`prefopt sample`."""
    from prefopt.runs import inspecting

    quiet_libraries()
    for prompt, completions in inspecting.sample(_target(options), options.prompt, options.number, options.completions):
        out.print(Text(prompt, style="bold"))
        for completion in completions:
            out.print(Padding(Text(f"→ {completion.strip()}"), (0, 0, 0, 2)))


def label(options: argparse.Namespace) -> None:
    """`prefopt label`."""
    from prefopt.runs.label import label as make_labels
    from prefopt.runs.label import load_label_recipe
    from prefopt.training.devices import end_processes

    settings = load_label_recipe(options.recipe, options.overrides)
    quiet_libraries()
    result = make_labels(settings, Path(options.out), err)
    end_processes()
    show_labelled(out, result)


def report(options: argparse.Namespace) -> None:
    """`prefopt report`."""
    from prefopt.runs.records import find_runs
    from prefopt.study.comparison.compare import compare
    from prefopt.study.comparison.confounds import confounds, seeds_note
    from prefopt.study.conclusion import declared_comparison, write_and_show
    from prefopt.study.spec import load_study

    results = find_runs(options.folders)
    only = Path(options.folders[0]) if len(options.folders) == 1 else None
    if only is not None and (declared := only / "study.yaml").exists():
        comparison = declared_comparison(load_study(declared), results, options.baseline, options.metric)
    else:
        odd, notes = confounds(results, options.baseline), [seeds_note(results)]
        comparison = compare(results, baseline=options.baseline, metric=options.metric, confounds=odd, notes=notes)
    write_and_show(comparison, Path(options.out or only or "report"), out)


def check(options: argparse.Namespace) -> None:
    """`prefopt check`."""
    from prefopt.environments import check_environment, environment_factory, is_environment
    from prefopt.objectives import load_objective
    from prefopt.objectives.contract import check_objective
    from prefopt.recipe import Environment
    from prefopt.support.plugins import checked_fields, find

    wrong = [field for field in options.fields if "=" not in field]
    if wrong:
        raise PrefoptError(f"{wrong[0]!r} is no field; write field=value, for example beta=0.3")
    fields = {key: yaml.safe_load(text) for key, _, text in (f.partition("=") for f in options.fields)}
    if ":" in options.objective and is_environment(find(options.objective)):
        row = {"prompt": "a prompt"} | {key[4:]: fields.pop(key) for key in list(fields) if key.startswith("row.")}
        environment = environment_factory(Environment(name=options.objective, **fields), "check")()
        answer = check_environment(environment, row, options.objective)
        return out.print(
            f"{options.objective} has the shape of an environment; its first answer is {answer}", markup=False
        )
    objective = checked_fields(load_objective(options.objective, **fields), options.objective)
    for name in check_objective(objective):
        out.print(f"[green]✓[/] {name}")
    out.print(f"{type(objective).__name__} keeps the contract")


def objectives(options: argparse.Namespace) -> None:
    """`prefopt objectives`."""
    from prefopt.objectives.listing import entries, entry

    for one in [entry(name) for name in options.names] or entries():
        paper = f"  arXiv {one.paper}" if one.paper else ""
        out.print(Text.assemble((one.name, "bold"), (paper, "dim")))
        facts = f"needs {one.needs}" + (f" · {one.defaults}" if one.defaults else "")
        out.print(Padding(Text(f"{one.summary}.\n").append(facts, style="cyan"), (0, 0, 0, 4)))
    out.print(Text("\nFormulas and sources: docs/objectives.md. Your own: `objective: losses.py:Class`.", style="dim"))


def cache(options: argparse.Namespace) -> None:
    """`prefopt cache`."""
    from prefopt.runs.results import show_kept, size
    from prefopt.support import caches

    look = caches.verified if options.action == "verify" else caches.usage
    entries = list(look(options.kind))
    if not entries:
        return out.print("nothing is kept" + (f" of the kind {options.kind}" if options.kind else ""))
    show_kept(out, entries)
    if options.action == "clear":
        if not options.yes:
            raise PrefoptError("this would delete what is listed above; add --yes to do it")
        out.print(f"deleted {size(caches.clear(options.kind))}")
    if damaged := sum(one.damaged for one in entries):
        out.print(f"{damaged} damaged: they are never used but computed again. `prefopt cache clear` deletes them")
        sys.exit(1)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; key=value may also stand after them, which argparse does not foresee."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    late = getattr(options, "overrides", getattr(options, "fields", None))
    if rest and (late is None or any(argument.startswith("-") or "=" not in argument for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late is not None:
        late += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefopt",
        description="Preference-optimization research: everything else equal, what does this objective do?",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(function: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(
            function.__name__, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.set_defaults(verb=function)
        return parser

    _add_training(verb)
    _add_measuring(verb)
    _add_looking_up(verb)
    return parser


def _add_training(verb: Verb) -> None:
    parser = verb(run, "train one recipe")
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file; with --resume, also a run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example train.lr=1e-6 objective.beta=0.3"
    )
    parser.add_argument("--out", metavar="DIR", help="the run folder; must be new")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the unfinished run")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that is on disk, print the resolved recipe, its batches, memory and downloads",
    )
    parser.add_argument("--profile", action="store_true", help="at the end, say where the time went")
    parser.format_help = _with_fields(parser.format_help, _run_fields)  # type: ignore[method-assign]
    parser = verb(study, "arms × seeds, resumable, then the report: the same command again does what is missing")
    parser.add_argument("study", metavar="STUDY", help="a YAML file (docs/studies.md)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seeds=5 common.train.steps=40")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--out", metavar="DIR", help="the study's folder (default: runs/NAME)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print runs, differences between arms and the time needed",
    )
    parser.add_argument("--untimed", action="store_true", help="with --dry-run: load no model to estimate the time")


def _add_measuring(verb: Verb) -> None:
    parser = verb(evaluate, "measure a policy on held-out data, or a judge against people, with intervals")
    parser.add_argument(
        "target", metavar="RECIPE|RUN", help="a recipe (its policy before training) or a finished run folder"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--out", metavar="FILE", help="also write every observation, as JSON")
    parser = verb(sample, "generate from a policy")
    parser.add_argument(
        "target", metavar="RECIPE|RUN", help="a recipe (its policy before training) or a finished run folder"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as evaluate.sampling.temperature=0.7"
    )
    parser.add_argument("--prompt", action="append", help="your own; may be given again (default: held-out prompts)")
    parser.add_argument("--number", type=_positive, default=5, help="of held-out prompts (default: 5)")
    parser.add_argument("--completions", type=_positive, default=1, help="of each prompt (default: 1)")
    parser = verb(label, "score or judge completions, write a preference data set")
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file (docs/label.md)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example prompts=100 samples.completions=2"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="the folder; the same command again goes on where it was interrupted",
    )
    parser.format_help = _with_fields(parser.format_help, _label_fields)  # type: ignore[method-assign]
    parser = verb(report, "compare finished runs: report.html, table.md, table.tex, results.csv")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run folders, studies, or folders of run folders")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the files go (default: DIR where it is one, else report/)"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the arm that others are compared with (default: the first)")
    parser.add_argument(
        "--metric", metavar="NAME", help="the one that decides, such as gold or gold_at_kl (default: gold)"
    )


def _add_looking_up(verb: Verb) -> None:
    parser = verb(check, "run the contract on an objective, yours or the catalogue's")
    parser.add_argument(
        "objective", metavar="PATH:CLASS", help="file.py:Class, package.module:Class or a catalogue name"
    )
    parser.add_argument("fields", nargs="*", metavar="field=value", help="hyperparameters")
    parser = verb(objectives, "list the catalogue: name, paper, needs, defaults")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; file.py:Class for your own")
    parser = verb(
        cache, "list, verify or clear what is kept on disk between runs ($PREFOPT_CACHE, or ~/.cache/prefopt)"
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "verify", "clear"), default="list", help="verify reads every checksum"
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help="logps, embeddings or judges (default: all)")
    parser.add_argument("--yes", action="store_true", help="do delete")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _run_fields() -> "Iterator[Described]":
    from prefopt.recipe import Recipe, describe

    for field in describe(Recipe):
        if not field.key.startswith(("source.validation.", "source.test.")):  # the same as those of source
            yield field


def _label_fields() -> "Iterator[Described]":
    from prefopt.recipe import describe
    from prefopt.runs.label import LabelRecipe

    return describe(LabelRecipe)


def _with_fields(usual: Callable[[], str], fields: "Callable[[], Iterator[Described]]") -> Callable[[], str]:
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


def _recipe(options: argparse.Namespace) -> "Recipe":
    from prefopt.recipe import load_recipe

    return load_recipe(options.recipe, options.overrides)


def _target(options: argparse.Namespace) -> "Recipe":
    """The recipe of a file, or of a run folder with the trained policy in place of the one it started from."""
    from prefopt.recipe import load_recipe
    from prefopt.runs.inspecting import trained

    folder = Path(options.target)
    return trained(folder, options.overrides) if folder.is_dir() else load_recipe(folder, options.overrides)


def _dry_run(settings: "Recipe") -> None:
    from prefopt.runs.dry_run import describe_dry_run, dry_run

    checked = dry_run(settings)
    out.print(settings.to_yaml(), end="", markup=False, soft_wrap=True)
    for line in describe_dry_run(checked):
        out.print(f"# {line}", markup=False, soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
