"""Verbs that measure and write data: evaluate, sample, label, report, export, push."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefopt.cli import consoles
from prefopt.cli.exits import FAILED
from prefopt.runs.results import show_evaluation, show_labelled
from prefopt.support.errors import PrefoptError
from prefopt.support.files import refuse_full, write_whole
from prefopt.support.logs import quiet_libraries

if TYPE_CHECKING:
    from prefopt.recipe import Recipe
    from prefopt.runs.inspecting import SampledText


def evaluate(options: argparse.Namespace) -> None:
    """`prefopt evaluate`."""
    from prefopt.recipe import sections_of

    if options.add:
        return _add(options)
    target = new_file(options.out)
    if not Path(options.target).is_dir() and "judge" in sections_of(options.target):
        return _evaluate_judge(options, target)
    settings = _target(options)
    from prefopt.runs import inspecting
    from prefopt.training.devices import end_processes

    quiet_libraries()
    evaluation = inspecting.evaluate(settings, consoles.err)
    end_processes()
    title = f"{options.target}: {settings.evaluate.part} rows, with {evaluation.confidence:.0%} intervals"
    show_evaluation(consoles.out, title, evaluation.estimates(), evaluation.numbers)
    keep(target, evaluation.to_json())


def _add(options: argparse.Namespace) -> None:
    """Further metrics of finished runs, kept in their folders."""
    if options.out is not None:
        raise PrefoptError("--add keeps what it measures in the run folder, and --out names a file: leave out one")
    if not Path(options.target).is_dir():
        raise PrefoptError(
            f"--add measures finished runs, and {options.target} is no folder: name a run's, or a study's"
        )
    from prefopt.runs.additions import additions_to
    from prefopt.runs.naming import refuse_unknown_measures

    additions, left_out = additions_to(Path(options.target), options.overrides)
    refuse_unknown_measures(additions[0][1].settings.evaluate)
    show_left_out(left_out)

    from prefopt.runs.adding import add
    from prefopt.support.sharing import sharing
    from prefopt.training.devices import end_processes

    quiet_libraries()
    with sharing():
        for run, one in additions:
            added = add(one, consoles.err)
            title = f"{run.folder}: added, with {added.confidence:.0%} intervals"
            show_evaluation(consoles.out, title, added.estimates(), added.numbers)
            files = [str(one.folder.measured_file(name)) for name in one.names]
            consoles.out.print(f"kept      {', '.join(files)}\n", highlight=False, soft_wrap=True)
    end_processes()


def show_left_out(sentences: Sequence[str]) -> None:
    """The runs of a study that get nothing added, and why."""
    for sentence in sentences if consoles.is_main_process() else ():
        consoles.err.print(f"left out: {sentence}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _evaluate_judge(options: argparse.Namespace, target: Path | None) -> None:
    """A judge against people, and against what the recipe requires of it."""
    from prefopt.evaluation.judges.report import JudgeRecipe, report
    from prefopt.feedback.judges.trust import untrusted
    from prefopt.recipe import load

    settings = load(JudgeRecipe, options.target, options.overrides)
    quiet_libraries()
    judged = report(settings, consoles.err)
    title = f"{options.target}: {settings.judge.name} against people, with {judged.confidence:.0%} intervals"
    show_evaluation(consoles.out, title, judged.estimates, judged.numbers)
    consoles.out.print("Each line: docs/judges.md", style="dim")
    keep(target, judged.to_json())
    if doubt := untrusted(judged.estimates, settings.require):
        raise PrefoptError(f"the judge does not keep what {options.target} requires: {doubt}")


def new_file(name: str | None) -> Path | None:
    """The file that was asked for; refused before anything is measured where it could not be written."""
    if name is None:
        return None
    target = Path(name)
    if target.exists():
        raise PrefoptError(f"{target} is there already, and nothing is overwritten: name another")
    if file := next((folder for folder in target.parents if folder.exists() and not folder.is_dir()), None):
        raise PrefoptError(f"{target}: {file} is a file and holds no others; name a folder")
    return target


def keep(target: Path | None, text: str) -> None:
    """Write a file that was asked for."""
    if target is not None and consoles.is_main_process():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)


def sample(options: argparse.Namespace) -> None:
    """`prefopt sample`."""
    settings = _target(options)
    from prefopt.runs import inspecting

    quiet_libraries()
    for sampled in inspecting.sample(settings, options.prompt, options.number, options.completions):
        consoles.out.print(Text(sampled.prompt, style="bold"))
        if sampled.task is not None:
            consoles.out.print(Text(f"task {sampled.task}", style="dim"))
        for completion in sampled.completions:
            if completion.messages:
                consoles.out.print(Padding(episode(completion), (0, 0, 1, 2)))
                continue
            cut = "" if completion.ended else f" … (cut at {completion.tokens} tokens)"
            consoles.out.print(Padding(Text.assemble(f"→ {completion.text.strip()}", (cut, "dim")), (0, 0, 0, 2)))


def episode(completion: "SampledText") -> Table:
    """The turns of an episode, one below the other: who, what, and what a turn of the policy earned."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    rewards = iter(completion.rewards)
    for message in completion.messages:
        role = message["role"]
        own = role == "assistant"
        said = Text(str(message.get("content") or "").strip())
        table.add_row("→ policy" if own else role, said, f"{next(rewards, 0.0):+.3g}" if own else "")
    table.add_row(
        "",
        Text(f"ended by {completion.stop}, {completion.tokens} tokens", style="dim"),
        f"{sum(completion.rewards):+.3g}",
    )
    return table


def label(options: argparse.Namespace) -> None:
    """`prefopt label`."""
    from prefopt.runs.label.recipe import load_label_recipe, refuse_folder
    from prefopt.runs.naming import refuse_unknown_names

    settings = load_label_recipe(options.recipe, options.overrides)
    refuse_folder(Path(options.out), settings)
    refuse_unknown_names(settings)

    from prefopt.runs.label.labelling import label as make_labels
    from prefopt.training.devices import end_processes

    quiet_libraries()
    result = make_labels(settings, Path(options.out), consoles.err)
    end_processes()
    show_labelled(consoles.out, result)
    if not result.labelled:
        consoles.err.print(
            f"no prompt got a verdict; {result.folder}/missing.jsonl has each with what the feedback noted. Mend the feedback, "
            "and label into another folder",
            soft_wrap=True,
        )
        sys.exit(FAILED)


def report(options: argparse.Namespace) -> None:
    """`prefopt report`."""
    from prefopt.runs.records import find_runs

    results = find_runs(options.folders)

    from prefopt.study.comparison.compare import PaperTable, compare  # with SciPy and torch
    from prefopt.study.comparison.confounds import confounds, seeds_note
    from prefopt.study.conclusion import declared_comparison, write_and_show
    from prefopt.study.spec import load_study

    paper = PaperTable(options.table, tuple(filter(None, options.metrics.split(","))))
    only = Path(options.folders[0]) if len(options.folders) == 1 else None
    if only is not None and (declared := only / "study.yaml").exists():
        asked = (options.baseline, options.metric, options.against, paper)
        comparison = declared_comparison(load_study(declared), results, *asked)
    else:
        against = options.against or "baseline"
        base = options.baseline or next((r.arm for r in results if r.arm == against), None)
        chosen = {"baseline": options.baseline, "against": against, "metric": options.metric, "paper": paper}
        odd, notes = confounds(results, base), [seeds_note(results)]
        comparison = compare(results, **chosen, confounds=odd, notes=notes)
    folder = Path(options.out or only or "report")
    write_and_show(comparison, folder, consoles.out)
    if options.figures:
        from prefopt.study.report.figure_files import write_figures

        names = write_figures(comparison, folder)
        consoles.out.print(f"figures   {folder / 'figures'}/", soft_wrap=True)
        consoles.out.print(
            f"          {' · '.join(names)}: .pdf, .svg, .png, each also -wide; captions.md, captions.tex"
        )


def export(options: argparse.Namespace) -> None:
    """`prefopt export`."""
    refuse_full(Path(options.out).expanduser())

    from prefopt.runs.exporting import export as write_whole_weights

    quiet_libraries()
    with consoles.err.status(f"exporting {options.target}"):
        exported = write_whole_weights(options.target, options.out, options.dtype, options.gguf)
    consoles.out.print(str(exported), soft_wrap=True)


def push(options: argparse.Namespace) -> None:
    """`prefopt push`."""
    from prefopt.runs.pushing import push as upload

    quiet_libraries()
    with consoles.err.status(f"uploading {options.target}"):
        address = upload(options.target, options.repo, options.private)
    consoles.out.print(address, soft_wrap=True)


def _target(options: argparse.Namespace) -> "Recipe":
    """The recipe of a file; or of a run, or one of its checkpoints, with the trained policy in place of that at the start."""
    from prefopt.recipe import load_recipe
    from prefopt.runs.folder import run_of
    from prefopt.runs.naming import refuse_unknown_measures, refuse_unknown_names

    folder = Path(options.target)
    if not folder.is_dir():
        settings = load_recipe(folder, options.overrides)
        refuse_unknown_names(settings)
        return settings
    # What is wrong with it is told before torch is imported.
    refuse_unknown_measures(run_of(folder)[0].recipe(options.overrides).evaluate)
    from prefopt.runs.inspecting import trained

    return trained(folder, options.overrides)
