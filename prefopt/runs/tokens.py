"""The rows of a run as token ids and as batches take them, and what only they can tell: how many are left, who can read them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data import DiskRows, Example, Report, Tokenised, preview, tokenise_to_disk
from prefopt.data.encoding import TextEncoder
from prefopt.data.selecting import IDENTICAL
from prefopt.data.tokenising import DROPPED
from prefopt.environments.checking import Shown
from prefopt.environments.making import check_section
from prefopt.environments.template_probe import probe_template
from prefopt.runs.lengths import longest_of, models_of, position_warnings, reward_model_warnings
from prefopt.runs.limits import unread_keys
from prefopt.runs.matching import batch_rows, training_rows
from prefopt.runs.planning import Plan, refuse_few
from prefopt.runs.progress import show_data, show_example, show_left, show_warnings
from prefopt.support.dates import current_date
from prefopt.support.errors import PrefoptError
from prefopt.support.sharing import shared, stamp
from prefopt.types import Needs

Rows = DiskRows[Tokenised]


class Tokens(NamedTuple):
    """The rows of a run as token ids.

    Attributes:
        plan: the run, with what only tokens can tell.
        parts: train, validation and test rows, and those of further sets, as they are written down in a manifest.
        train: the training rows as batches take them; of rollouts, the prompts.
        own: the same of terms with a source of their own, by their number.
    """

    plan: Plan
    parts: dict[str, Rows]
    train: Rows
    own: dict[int, Rows]


def with_tokens(planned: Plan, tokenizer: PreTrainedTokenizerBase, console: Console) -> Tokens:
    """Tokenise what a run reads, and select what its batches take.

    Args:
        planned: the run.
        tokenizer: of the policy.
        console: where counts, further warnings and the first row are shown.

    Raises:
        PrefoptError: fewer rows than a batch are left, a model has no positions for what it is to read, or the chat template
            cannot hold episodes.
    """
    settings = planned.recipe
    parts, reports = dict[str, Rows](), dict[str, Report]()
    for part, rows in _parts(planned).items():
        parts[part], reports[part] = tokenised(rows, part, settings.source, planned.needs, tokenizer)
        if part == "train":
            train, reports[part] = _selected(parts[part], reports[part], planned.wanted, settings.source)
        show_data(console, part, reports[part])
    before, planned = (
        planned.rows,
        replace(
            planned,
            rows=len(train),
            left={part: report.kept for part, report in reports.items()},
            counts={part: dict(report.counts) for part, report in reports.items()},
        ),
    )
    if len(train) != before and settings.train.epochs is not None:
        show_left(console, len(train), planned.steps)
    own = {i: _own_rows(planned, i, tokenizer, console) for i in planned.own}
    named = parts | {f"{settings.objective[i].name}'s": rows for i, rows in own.items()}
    found = [
        *unread_keys(settings, _template(tokenizer), planned.data.train),
        *position_warnings(models_of(settings, planned.needs.rewards), longest_of(settings, named)),
        *reward_model_warnings(settings, parts["train"]),
        *_cut_warnings(parts, settings.source),
        *_template_warnings(planned, parts, tokenizer),
        *_same_warning(planned.counts["train"].get(IDENTICAL, 0), len(train)),
    ]
    show_warnings(console, found)
    planned = replace(planned, warnings=(*planned.warnings, *found))
    refuse_few(planned)
    if train:
        show_example(console, preview(train[0], tokenizer))
    return Tokens(planned, parts, train, own)


def _own_rows(planned: Plan, number: int, tokenizer: PreTrainedTokenizerBase, console: Console) -> Rows:
    """The rows of a term with a source of its own, as its batches take them."""
    term, own = planned.recipe.objective[number], planned.own[number]
    assert term.source is not None
    part = f"source of {term.name}"
    read = tokenised(own.data.train, part, term.source, own.needs, tokenizer)
    selected, report = _selected(*read, own.needs, term.source)
    show_data(console, part, report)
    return selected


def _selected(rows: Rows, report: Report, needs: Needs, source: recipe.Source) -> tuple[Rows, Report]:
    """The rows as batches take them, and the report with what that leaves out."""
    counts: Counter[str] = Counter()
    selected = batch_rows(rows, needs, source, counts)
    return selected, replace(report, kept=len(selected), counts={**report.counts, **+counts})


def tokenised(
    rows: DiskRows[Example],
    part: str,
    source: recipe.Source,
    needs: Needs,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Rows, Report]:
    """Rows as token ids, and what was dropped and cut; the runs of a study tokenise a part once.

    Args:
        rows: of one part of the data.
        part: its name, for messages.
        source: says how long prompts and completions may be.
        needs: say which columns belong to completions or tokens.
        tokenizer: of the policy.

    Raises:
        PrefoptError: all rows were too long, or the chat template leaves out what all of them have.
    """
    longest = (source.max_prompt_tokens, source.max_completion_tokens)
    longer = source.too_long
    axes = tuple(sorted(needs.axes.items()))
    key = (stamp(tokenizer.name_or_path), current_date(), *longest, longer, rows.identity, axes, needs.rewards)
    token_rows, report = shared(
        "tokens",
        key,
        lambda: tokenise_to_disk(rows, tokenizer, *longest, axes=needs.axes, longer=longer, ended=needs.rewards),
    )
    dropped = sum(report.counts.get(what, 0) for what in DROPPED.values())
    if dropped and not token_rows:
        raise PrefoptError(
            f"the {part} rows: none of {report.examples} is left. source.too_long is {source.too_long}, and {dropped} are longer "
            f"than source.max_prompt_tokens ({longest[0]}) or source.max_completion_tokens ({longest[1]}): raise these"
        )
    if report.refusal:
        raise PrefoptError(f"the {part} rows: {report.refusal}")
    return token_rows, report


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""


def _template_warnings(planned: Plan, parts: Mapping[str, Rows], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Which turns of episodes the chat template does not keep."""
    settings = planned.recipe
    rollouts = settings.source.rollouts
    sections = (
        ("source.rollouts.environment", rollouts and rollouts.environment, "train"),
        ("evaluate.environment", settings.evaluate.environment, settings.evaluate.part),
    )
    for key, spec, part in sections:
        if spec and key in planned.shown and parts[part]:
            yield from template_warnings(spec, key, parts[part][0], planned.shown[key], tokenizer)


def template_warnings(
    spec: recipe.Environment, key: str, row: Tokenised, shown: Shown, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """Which turns of episodes in an environment the chat template does not keep; at most one sentence.

    Args:
        spec: the section of the environment.
        key: of it, for messages.
        row: with a prompt.
        shown: what the environment showed of itself when it was checked.
        tokenizer: of the policy.

    Raises:
        PrefoptError: it keeps none.
    """
    if warning := probe_template(row, shown, TextEncoder.of(tokenizer), f"{key}: {spec.name}", spec.max_turns):
        yield warning


def checked_acting(
    spec: recipe.Environment | None, key: str, rows: Sequence[Tokenised], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """`template_warnings` of an environment that nothing has checked yet, for the first of some rows; none where there is none.

    Raises:
        PrefoptError: it is none (`check_section`), or the template keeps no turn.
    """
    if spec is not None and rows:
        row = rows[0]
        shown = check_section(spec, key, {**row.columns, "prompt": row.example.prompt})
        yield from template_warnings(spec, key, row, shown, tokenizer)


def _parts(planned: Plan) -> dict[str, DiskRows[Example]]:
    """Train, validation and test rows, and those of further sets; of training rows for rollouts, their prompts."""
    source, needs = planned.recipe.source, planned.wanted
    parts = planned.parts
    if source.rollouts is not None:
        rows: DiskRows[Example] = parts["train"]
        key = ("to train on", rows.identity, needs, source.ties, source.writers)
        parts["train"] = shared("examples", key, lambda: DiskRows.of(training_rows(rows, needs, source)))
    return parts


def _same_warning(same: int, rows: int) -> Iterator[str]:
    """Where at least half of the rows have nothing to tell apart."""
    if same and same * 2 >= rows:
        yield (
            f"{same} of {rows} rows to train on have completions that are the same, as written or as cut at "
            "source.max_completion_tokens: nothing is learnt from them"
        )


def _cut_warnings(data: Mapping[str, Sequence[Tokenised]], source: recipe.Source) -> Iterator[str]:
    """Where every prompt or every completion of a part was cut."""
    most_prompt, most_completion = source.max_prompt_tokens, source.max_completion_tokens
    for part, rows in data.items():
        if rows and all(row.prompt_cut for row in rows):
            yield f"all {len(rows)} prompts of {part} rows lose their beginning: source.max_prompt_tokens is {most_prompt}"
        if rows and all(row.completions_cut and all(row.completions_cut) for row in rows):
            yield (
                f"all completions of the {len(rows)} {part} rows lose their end, so that none ends with EOS: "
                f"source.max_completion_tokens is {most_completion}"
            )
