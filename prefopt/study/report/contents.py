"""What a page shows of a comparison beside its tables and figures: facts, samples, differences, further metrics, environment."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from prefopt.recipe.flat import flat
from prefopt.runs.records import RunRecord
from prefopt.study.comparison.comparison import AT_KL, Comparison, Row, Table
from prefopt.study.comparison.confounds import as_evaluated
from prefopt.study.report import text_tables
from prefopt.support.errors import some_of
from prefopt.support.wording import left, number

PROMPTS = 8
"""The number of prompts whose samples are shown."""
SELF = ("name", "seed", "seeds", "track")
"""Sections of a recipe that differ between any two runs."""


class Fact(NamedTuple):
    """A line above everything else: what it is about, in short, and in full where that is more."""

    name: str
    text: str
    details: str = ""


def facts(comparison: Comparison, folder: Path) -> list[Fact]:
    """Model, data, what was measured on which part, runs, dates and version; several values where runs differ."""
    runs = [run for run in comparison.runs if run.recipe]
    shown = [
        _fact("model", [_named(_at(run.recipe, "policy", "model"), folder) + _size(run) for run in runs]),
        _fact("data", [_named(_at(run.recipe, "source", "data"), folder) for run in runs]),
        _fact("trained on", [_rows(run, "train") for run in runs]),
        _fact("measured on", [_measured_on(run, comparison.metric.removesuffix(AT_KL)) for run in runs]),
        Fact("runs", _counted(comparison)),
        _fact("begun", sorted(str(run.manifest.get("started", ""))[:10] for run in runs)),
        _fact("prefopt", [str(_at(run.manifest, "versions", "prefopt-research") or "") for run in runs]),
    ]
    return [fact for fact in shown if fact.text]


def _fact(name: str, values: Sequence[str]) -> Fact:
    distinct = [value for value in dict.fromkeys(values) if value]
    return Fact(name, some_of(distinct, 3), ", ".join(distinct) if len(distinct) > 3 else "")


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _named(value: Any, folder: Path) -> str:
    """A model or data by its name; a folder of this machine by its place below the report's, or by its last part."""
    if isinstance(value, list):
        return ", ".join(_named(one, folder) for one in value)
    if isinstance(value, Mapping):
        value = value.get("data") or value.get("name") or "given"
    if not isinstance(value, str) or not value.startswith("/"):
        return "" if value is None else str(value)
    return str(Path(value).relative_to(folder)) if Path(value).is_relative_to(folder) else Path(value).name


def _size(run: RunRecord) -> str:
    parameters = _at(run.manifest, "model", "parameters")
    if not isinstance(parameters, int | float):
        return ""
    return f" ({number(parameters / 1e9)} B parameters)" if parameters >= 1e8 else f" ({parameters:,} parameters)"


def _rows(run: RunRecord, part: str) -> str:
    rows, trained_on = (_at(run.manifest, "data", part, key) for key in ("rows", "trained_on"))
    if not isinstance(rows, int):
        return ""
    return f"{left(trained_on, rows) if isinstance(trained_on, int) else f'{rows:,}'} rows"


def _measured_on(run: RunRecord, metric: str) -> str:
    """The part, and on how many prompts of it the metric was measured."""
    observed = run.evaluation.observations.get(metric) if run.evaluation else None
    prompts = f", {metric} on {len(set(observed.groups)):,} prompts" if observed else ""
    return f"{run.part} rows{prompts}" if run.after else ""


def _counted(comparison: Comparison) -> str:
    seeds = {run.seed for run in comparison.runs}
    counts = [
        (sum(run.state == state for run in comparison.runs), state) for state in ("stopped", "failed", "unfinished")
    ]
    several = "s" * (len(seeds) != 1)
    whole = f"{len(comparison.runs)} of {len(comparison.arms)} arms × {len(seeds)} seed{several}"
    return ", ".join([whole, *(f"{count} {state}" for count, state in counts if count)])


class RunLink(NamedTuple):
    """Where a run is, as seen from the page, and how it ended."""

    address: str
    state: str
    trouble: str


def run_links(comparison: Comparison, folder: Path) -> dict[tuple[str, int], RunLink | None]:
    """Of every arm and seed; None where an arm was not run with a seed."""
    links: dict[tuple[str, int], RunLink | None] = {
        (arm, seed): None for arm in comparison.arms for seed in {run.seed for run in comparison.runs}
    }
    for run in comparison.runs:
        place = os.path.relpath(run.folder.absolute(), folder.absolute())
        links[run.arm, run.seed] = RunLink(f"./{quote(place)}/", run.state, run.trouble)
    return links


def cells_and_reasons(row: Row, words: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """The cells of a row; where one does not apply, also the reason."""
    cells = zip(text_tables.HEADINGS, text_tables.cells(row, words), strict=True)
    return [(text, _why_empty(row, heading) if _is_empty(row, heading, text) else "") for heading, text in cells]


def _is_empty(row: Row, heading: str, text: str) -> bool:
    untested = row.difference is not None and row.difference.mean.seeds < 2
    return text in ("", "–") or (untested and heading.startswith("p "))


def _why_empty(row: Row, heading: str) -> str:
    if row.difference is None:
        return (
            "no run of the baseline has this number"
            if heading == "mean"
            else "the baseline is not compared with itself"
        )
    if heading == "mean":
        return "no run of this arm has this number"
    if row.difference.mean.seeds == 0:
        return "no seed has this number in this arm and in the baseline"
    if row.difference.mean.seeds == 1:
        return "takes two seeds, and one has this number in this arm and in the baseline"
    if heading == "r":
        return "takes three seeds that vary"
    if row.difference.mean.low == row.difference.mean.high:
        return "the numbers of the seeds do not vary"
    return "comparisons of this kind have none: their intervals decide"


def samples(comparison: Comparison) -> list[dict[str, Any]]:
    """Prompts, of several tasks each, with a completion of each arm, from the first of the seeds that most arms finished."""
    by_seed: dict[int, dict[str, dict[tuple[str, str], Mapping[str, Any]]]] = {}
    for run in comparison.runs:
        if run.evaluation and run.evaluation.samples:
            first: dict[tuple[str, str], Mapping[str, Any]] = {}
            for sample in run.evaluation.samples:
                task = _value_text(sample["task"]) if "task" in sample else ""
                first.setdefault((_text(sample["prompt"]), task), sample)
            by_seed.setdefault(run.seed, {})[run.arm] = first
    if not by_seed:
        return []
    seed, arms = max(by_seed.items(), key=lambda item: (len(item[1]), -item[0]))
    first_arm = next(iter(arms.values()))
    prompts = [p for p in first_arm if all(p in by_prompt for by_prompt in arms.values())][:PROMPTS]
    return [
        {
            "prompt": asked[0],
            "task": asked[1],
            "rendered": _rendered(first_arm[asked].get("rendered")),
            "seed": seed,
            "arms": [(arm, by_prompt[asked]) for arm, by_prompt in arms.items()],
        }
        for asked in prompts
    ]


def _rendered(pieces: Any) -> list[tuple[str, bool]]:
    """A prompt as the model saw it, in pieces; empty where a run did not record it."""
    whole = isinstance(pieces, list) and all(isinstance(piece, list) and len(piece) == 2 for piece in pieces)
    return [(str(text), special is True) for text, special in pieces] if whole else []


def turns_of_sample(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of an episode: who said what, and what a turn of the policy earned; empty for a sample of one answer."""
    rewards = iter(sample.get("turn_rewards") or ())
    turns = []
    for message in sample.get("messages") or ():
        own = message.get("role") == "assistant"
        reward = next(rewards, None) if own else None
        turns.append(
            {
                "own": own,
                "role": "policy" if own else str(message.get("role")),
                "text": str(message.get("content") or "").strip() or "(nothing)",
                "reward": number(reward, signed=True) if reward else "",
            }
        )
    return turns


def of_sample(sample: Mapping[str, Any]) -> str:
    """What was measured of a sample, in a line."""
    gold, length = sample.get("gold"), sample.get("length")
    rewards = sample.get("turn_rewards")
    parts = [f"return {number(math.fsum(rewards))}, ended by {sample.get('stop')}" if rewards else ""]
    parts += [f"gold {number(gold)}" if gold is not None else ""]
    parts.append(f"{length:.0f} token{'s' * (length != 1)}" if length is not None else "")
    parts.append("cut" if sample.get("ended") == 0 else "")
    return ", ".join(filter(None, parts))


def differing(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Fields of the recipes that differ between arms, with the value of each arm; a field that a recipe lacks is null."""
    by_arm = {arm: flat(as_evaluated(recipe)) for arm, recipe in recipes(comparison)}
    keys = list(dict.fromkeys(key for fields in by_arm.values() for key in fields if key.partition(".")[0] not in SELF))
    values = [(key, [_value_text(by_arm.get(arm, {}).get(key)) for arm in comparison.arms]) for key in keys]
    return [(key, of_arms) for key, of_arms in values if len(set(of_arms)) > 1]


def by_value(values: Sequence[str], arms: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each value with the arms that have it, in the order of the arms."""
    grouped: dict[str, list[str]] = {}
    for value, arm in zip(values, arms, strict=True):
        grouped.setdefault(value, []).append(arm)
    return list(grouped.items())


class Group(NamedTuple):
    """Further metrics of one set of rows; the name is empty for the run's own.

    Attributes:
        metrics: name, and its tables: of all rows first, then of parts of them (`gold[source=x]`).
    """

    name: str
    metrics: list[tuple[str, list[Table]]]


def grouped(tables: Sequence[Table]) -> list[Group]:
    """Tables by the set in their metric's name (`set/gold`), and within it by metric."""
    sets: dict[str, dict[str, list[Table]]] = {}
    for table in tables:
        of, slash, rest = table.metric.partition("[")[0].rpartition("/")
        plain = re.sub(r"\[.*\]", "", rest if slash else table.metric)
        sets.setdefault(of, {}).setdefault(plain, []).append(table)
    return [
        Group(of, [(name, sorted(found, key=lambda t: "[" in t.metric)) for name, found in metrics.items()])
        for of, metrics in sets.items()
    ]


def environment_of(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Versions, devices and commits; several values where runs differ."""
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        for section in ("versions", "device", "git"):
            for key, value in flat(run.manifest.get(section) or {}).items():
                seen.setdefault(f"{section}.{key}", {})[_value_text(value)] = None
    return [(key, ", ".join(values)) for key, values in seen.items()]


def recipes(comparison: Comparison) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The recipe of each arm, from its first run that has one; objectives with all their defaults."""
    for arm in comparison.arms:
        yield arm, next((_with_defaults(run) for run in comparison.of(arm) if run.recipe), {})


def _with_defaults(run: RunRecord) -> Mapping[str, Any]:
    terms, resolved = run.recipe.get("objective", []), run.manifest.get("objectives", [])
    if len(terms) != len(resolved):
        return run.recipe
    return {**run.recipe, "objective": [{**own, **term} for own, term in zip(resolved, terms, strict=True)]}


def _value_text(value: Any) -> str:
    """A value of a recipe or manifest; `null` where there is none."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(prompt: Any) -> str:
    """A prompt as text; the turns of a conversation one below the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)
