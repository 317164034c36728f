"""methods.md and methods.tex: what was done, in sentences for a paper, from the recipes and manifests of the runs and nothing else.

What no run recorded is not said; where arms differ, each value stands with its arms. A citation is written [@key] here and in
Markdown, as pandoc reads it, and \\cite{key} in LaTeX.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prefopt.recipe.flat import flat
from prefopt.runs.records import RunRecord
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.comparison.confounds import together
from prefopt.study.comparison.contrasts import AT_KL
from prefopt.study.comparison.crossed import prompts_measured
from prefopt.study.comparison.verdict import metric_title
from prefopt.study.report import contents
from prefopt.study.report.references import (
    ADAMW,
    EDWARDS_HSU,
    HOLM,
    LIBRARIES,
    LORA,
    PREFOPT,
    named,
    of_asset,
    of_objective,
    references,
)
from prefopt.study.report.tex import escaped
from prefopt.support.terminal import one_line
from prefopt.support.threads import PhaseThreads
from prefopt.support.wording import amount, left, listed, span

Say = Callable[[RunRecord], str]
"""What a run says about something; empty where it does not."""


def markdown(comparison: Comparison) -> str:
    """methods.md; its citations are of references.bib."""
    return "\n\n".join(f"**{title}.** {' '.join(sentences)}" for title, sentences in paragraphs(comparison)) + "\n"


def latex(comparison: Comparison) -> str:
    """methods.tex: paragraphs to be put into a paper, whose bibliography has references.bib."""
    keys = {reference.key for reference in references(comparison)}
    head = "% Made by `prefopt report` from the recipes and manifests of the runs; cites references.bib."
    parts = [rf"\paragraph{{{title}.}} {_cited(' '.join(text), keys)}" for title, text in paragraphs(comparison)]
    return "\n\n".join([head, *parts]) + "\n"


def _cited(text: str, keys: set[str]) -> str:
    """Text for LaTeX; [@key] of a key that the bibliography has is a citation, and any other text."""
    parts = re.split(r"( ?\[@[\w; @]+\])", text)
    return "".join(_citation(part, keys) or escaped(part) for part in parts)


def _citation(part: str, keys: set[str]) -> str:
    found = re.findall(r"@(\w+)", part) if part.lstrip().startswith("[@") else []
    return rf"~\cite{{{','.join(found)}}}" if found and set(found) <= keys else ""


def paragraphs(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Titles and sentences, of what there is something to say about."""
    runs = [run for run in comparison.runs if run.recipe]
    parts = [
        ("Arms and seeds", _arms(comparison, runs)),
        ("Models and data", _models(comparison, runs)),
        ("Training", _training(comparison, runs)),
        ("Evaluation", _evaluation(comparison, runs)),
        ("Statistics", _statistics(comparison)),
        ("Costs", _costs(comparison)),
        ("Software and hardware", _software(comparison, runs)),
        ("Differences between arms", _differences(comparison)),
    ]
    filled = [(title, [one_line(text) for text in sentences]) for title, sentences in parts]
    return [(title, sentences) for title, sentences in filled if sentences]


def by_arm(comparison: Comparison, runs: Sequence[RunRecord], say: Say) -> str:
    """What all runs say; where arms differ, each value with its arms; where seeds of an arm differ, all of its values."""
    values = {
        arm: " or ".join(dict.fromkeys(text for run in runs if run.arm == arm and (text := say(run))))
        for arm in comparison.arms
    }
    groups = [(text, arms) for text, arms in contents.by_value(list(values.values()), list(values)) if text]
    trained = {run.arm for run in runs}
    if len(groups) == 1 and set(groups[0][1]) >= trained:
        return groups[0][0]
    return "; ".join(f"{text} ({', '.join(arms)})" for text, arms in groups)


def _arms(comparison: Comparison, runs: Sequence[RunRecord]) -> Iterator[str]:
    seeds = sorted({run.seed for run in comparison.runs})
    numbers = ", ".join(map(str, seeds))
    yield (
        f"We compare {listed(comparison.arms)} with prefopt [@{PREFOPT.key}], with {len(seeds)} seed{'s' * (len(seeds) != 1)} "
        f"({numbers}), {len(comparison.runs)} runs in all."
    )
    for state in ("failed", "stopped", "unfinished"):
        if count := sum(run.state == state for run in comparison.runs):
            yield f"{count} of the runs {'are' if count != 1 else 'is'} {state}."
    for arm in comparison.arms:
        if text := by_arm(comparison, [run for run in runs if run.arm == arm], _objective):
            yield f"{arm}: {text.removesuffix(f' ({arm})')}."


def _objective(run: RunRecord) -> str:
    if _at(run.recipe, "train", "steps") == 0:
        return "evaluated as it is, without training"
    terms = run.manifest.get("objectives") or run.recipe.get("objective") or []
    return " plus ".join(_term(term) for term in terms if isinstance(term, Mapping))


def _term(term: Mapping[str, Any]) -> str:
    paper = of_objective(str(term.get("name")))
    fields = ", ".join(
        f"{key} = {value}"
        for key, value in term.items()
        if key not in ("name", "weight", "source") and value is not None
    )
    weight = f"{term['weight']} × " if term.get("weight", 1.0) != 1.0 else ""
    return f"{weight}{term.get('name')}{f' [@{paper.key}]' if paper else ''}{f' with {fields}' if fields else ''}"


def _models(comparison: Comparison, runs: Sequence[RunRecord]) -> Iterator[str]:
    say = _sayer(comparison, runs)
    yield from say("The policy starts from {}.", _model)
    yield from say("Adapter: {}.", _adapter)
    yield from say("Data: {}.", lambda run: ", ".join(map(_asset, named(run.recipe, "source", "data"))))
    yield from say("Rows: {}.", _rows)
    yield from say("Fingerprint of the rows that are evaluated: {}.", _fingerprint)
    yield from say("Prompts have at most {} tokens.", lambda run: _text(_at(run.recipe, "source", "max_prompt_tokens")))
    yield from say(
        "Completions have at most {} tokens.", lambda run: _text(_at(run.recipe, "source", "max_completion_tokens"))
    )
    yield from say("The policy writes its own completions: {}.", _rollouts)
    yield from say("They are scored by {}.", lambda run: _section(run, "feedback"))


def _model(run: RunRecord) -> str:
    model = run.manifest.get("model") or {}
    names = named(run.recipe, "policy", "model")
    if not model and not names:
        return ""
    size, trained = model.get("parameters"), model.get("trainable")
    parts = [f"{size:,} parameters"] if isinstance(size, int) else []
    parts += [f"{trained:,} of them trained"] if isinstance(trained, int) and trained != size else []
    # Of an adapter or a head that starts at random, every seed has another, and the base is one.
    weights = model.get("base") or model.get("fingerprint")
    parts += [f"weights {weights[:12]}"] if weights else []
    return ", ".join(map(_asset, names)) + (f" ({', '.join(parts)})" if parts else "")


def _asset(name: str) -> str:
    """A model or data set by its name, cited where it is one of the hub; a folder of this machine by its last parts."""
    known = of_asset(name)
    shown = "/".join(name.rstrip("/").split("/")[-2:]) if name.startswith(("/", "~")) else name
    return f"{shown} [@{known.key}]" if known else shown


def _rows(run: RunRecord) -> str:
    data = run.manifest.get("data") or {}
    parts = {name: part for name, part in data.items() if isinstance(part, Mapping) and part.get("rows")}
    return ", ".join(
        f"{left(part.get('trained_on', part['rows']), part['rows'])} for {name}" for name, part in parts.items()
    )


def _fingerprint(run: RunRecord) -> str:
    return _text(_at(run.manifest, "data", run.part, "fingerprint"))[:12]


def _rollouts(run: RunRecord) -> str:
    rollouts = _at(run.recipe, "source", "rollouts")
    if not isinstance(rollouts, Mapping):
        return ""
    return f"{rollouts.get('completions')} for each prompt, {_sampling(rollouts.get('sampling'))}"


def _sampling(sampling: Any) -> str:
    keys = ("temperature", "top_p", "top_k", "max_tokens")
    known = sampling if isinstance(sampling, Mapping) else {}
    return ", ".join(f"{key.replace('_', ' ')} {known[key]}" for key in keys if known.get(key) is not None)


def _adapter(run: RunRecord) -> str:
    adapter = _at(run.recipe, "policy", "adapter")
    if not isinstance(adapter, Mapping):
        return ""
    fields = {key: value for key, value in flat(adapter).items() if key != "method" and value not in (None, [], "")}
    shown = ", ".join(f"{key} = {value}" for key, value in fields.items())
    return f"{adapter.get('method') or f'LoRA [@{LORA.key}]'}{f' ({shown})' if shown else ''}"


def _training(comparison: Comparison, runs: Sequence[RunRecord]) -> Iterator[str]:
    say = _sayer(comparison, [run for run in runs if _at(run.recipe, "train", "steps") != 0])
    yield from say("Training takes {} steps.", lambda run: _text(run.history and _steps(run)))
    yield from say("A batch has {}.", _batch)
    yield from say("Optimiser: {}.", _optimiser)
    yield from say("Schedule: {}.", _schedule)
    yield from say("Arithmetic: {}.", lambda run: _text(_at(run.manifest, "device", "precision"), no="float32"))


def _steps(run: RunRecord) -> int:
    return max(int(line["step"]) for line in run.history)


def _batch(run: RunRecord) -> str:
    train = run.recipe.get("train") or {}
    size, mini, passes = (train.get(key) for key in ("batch_size", "minibatch_size", "passes"))
    prompts = "prompts" if isinstance(_at(run.recipe, "source", "rollouts"), Mapping) else "rows"
    text = f"{size} {prompts}" if size else ""
    text += f", learnt from in minibatches of {mini}" if mini else ""
    return text + (f", {passes} times" if passes and passes != 1 else "")


def _optimiser(run: RunRecord) -> str:
    train = run.recipe.get("train") or {}
    name = _choice(run, "optimizer")
    cited = f"AdamW [@{ADAMW.key}]{name.removeprefix('adamw')}" if re.match(r"adamw\b", name) else name
    betas = train.get("betas")
    parts = [f"learning rate {train['lr']:g}"] if isinstance(train.get("lr"), int | float) else []
    parts += [f"betas {', '.join(map(str, betas))}"] if isinstance(betas, list) else []
    return ", ".join(filter(None, [cited, *parts]))


def _schedule(run: RunRecord) -> str:
    name, others = _choice(run, "schedule"), _train_fields(run, "warmup", "clip_norm", "weight_decay")
    return ", ".join(filter(None, [name, others]))


def _choice(run: RunRecord, key: str) -> str:
    """A section of `train` that has a name, which older recipes have alone."""
    given = _at(run.recipe, "train", key)
    return _section(run, "train", key) if isinstance(given, Mapping) else _text(given)


def _evaluation(comparison: Comparison, runs: Sequence[RunRecord]) -> Iterator[str]:
    metric = comparison.metric.removesuffix(AT_KL)
    prompts = prompts_measured(comparison.runs, metric)
    on = f" and {span(*prompts)} prompts" if prompts else ""
    at = ", read where two arms have the same KL" if comparison.metric.endswith(AT_KL) else ""
    yield f"The primary metric is {metric}{at}; {comparison.better} is better."
    yield f"It is measured on {comparison.rows_of(comparison.metric)}{on}."
    say = _sayer(comparison, runs)
    yield from say("Samples: {}.", _samples)
    yield from say("Gold reward: {}.", lambda run: _section(run, "evaluate", "gold"))
    yield from say("Judge: {}.", lambda run: _section(run, "evaluate", "judge"))
    if shared := sum("shared" in run.manifest for run in runs):
        yield f"Runs that start alike were measured once before training: {shared} of {len(runs)} have another's numbers there."


def _samples(run: RunRecord) -> str:
    if not _at(run.recipe, "evaluate", "prompts"):
        return ""
    number, sampling = _at(run.recipe, "evaluate", "completions"), _sampling(_at(run.recipe, "evaluate", "sampling"))
    return ", ".join(filter(None, [f"{number} for each prompt" if number else "", sampling]))


def _statistics(comparison: Comparison) -> Iterator[str]:
    c = comparison
    level = f"{100 * c.confidence:g}%"
    if max(row.mean.seeds for row in c.primary.rows) < 2:
        yield "There is one seed, so that no interval over seeds can be given."
        return
    test = "differences paired by seed, Student's t" if c.paired else "Welch's t for independent seeds"
    yield f"Intervals are {level} intervals over seeds ({test}); they hold for these prompts."
    if c.against == "best":
        yield f"Each arm is compared with the best of the others, by one-sided intervals that hold together [@{EDWARDS_HSU.key}]."
    else:
        count = len(c.primary.pairs) or len(c.arms) - 1
        which = "all pairs of arms" if c.against == "all" else f"each arm and {c.baseline}"
        yield f"We compare {which}: {count} comparison{'s' * (count != 1)} on {metric_title(c.metric)}."
        if count > 1:
            yield f"Simultaneous intervals are at Bonferroni's level, p-values are Holm's [@{HOLM.key}]."
    if any(row.crossed for row in c.primary.rows):
        yield "Intervals for other prompts, too, add the variance that prompts have in common over seeds (crossed random effects)."
    yield "All other metrics are exploratory."


def _costs(comparison: Comparison) -> Iterator[str]:
    units = {
        "trained_tokens": "tokens trained on",
        "sampled_tokens": "tokens sampled",
        "labels": "labels",
        "flops": "FLOPs (estimate)",
    }
    said = []
    for arm in comparison.arms:
        costs = comparison.costs[arm]
        numbers = [f"{amount(costs[key])} {unit}" for key, unit in units.items() if costs[key] > 0]
        if numbers:
            said.append(f"{arm}: {', '.join(numbers)}")
    if said:
        yield f"Training a run cost, on average: {'; '.join(said)}."


def _software(comparison: Comparison, runs: Sequence[RunRecord]) -> Iterator[str]:
    versions = {
        name: text
        for name in ("prefopt-research", "python", *LIBRARIES)
        if (text := by_arm(comparison, runs, _version(name)))
    }
    if versions:
        yield f"Versions: {', '.join(f'{name}{_cite(name)} {version}' for name, version in versions.items())}."
    say = _sayer(comparison, runs)
    yield from say("Hardware: {}.", _hardware)
    dates = sorted(str(run.manifest["started"])[:10] for run in runs if run.manifest.get("started"))
    if dates:
        yield (
            f"The runs began on {dates[0]}."
            if dates[0] == dates[-1]
            else f"The runs began from {dates[0]} to {dates[-1]}."
        )


def _version(name: str) -> Say:
    return lambda run: _text(_at(run.manifest, "versions", name))


def _cite(library: str) -> str:
    return f" [@{LIBRARIES[library].key}]" if library in LIBRARIES else ""


def _hardware(run: RunRecord) -> str:
    device = run.manifest.get("device") or {}
    parts = [str(device[key]) for key in ("type", "name") if device.get(key)]
    processes, threads = device.get("processes"), PhaseThreads.of(device.get("threads"))
    parts += [f"{processes} processes"] if processes and processes != 1 else []
    parts += [threads.in_words()] if threads and device.get("type") == "cpu" else []
    return ", ".join(parts)


TOLD = (
    *("objective", "variables", "policy", "feedback", "source.data", "source.rollouts", "source.max_"),
    *(f"train.{key}" for key in ("steps", "batch_size", "minibatch_size", "passes", "lr", "optimizer", "betas")),
    *(f"train.{key}" for key in ("schedule", "warmup", "clip_norm", "weight_decay", "precision")),
    *("evaluate.sampling", "evaluate.completions", "evaluate.gold", "evaluate.judge"),
)
"""How keys begin whose differences the sentences above tell."""


def _differences(comparison: Comparison) -> Iterator[str]:
    said = []
    for key, values in contents.differing(comparison):
        if not key.startswith(TOLD) and len({_setting(value) for value in values}) > 1:
            groups = contents.by_value([_setting(value) for value in values], list(comparison.arms))
            said.append(f"{key}: {', '.join(f'{value} ({listed(arms)})' for value, arms in groups)}")
    if said:
        yield f"The arms' recipes further differ in {'; '.join(said)}."
    odd = [sentence for sentence in together(comparison.confounds) if not re.search(r": [\w./-]+ is ", sentence)]
    if odd:
        yield f"What is not the same in all arms and was not declared: {'; '.join(odd)}."


def _setting(value: str) -> str:
    return "none" if value in ("null", "{}", "[]") else _asset(value)


def _sayer(comparison: Comparison, runs: Sequence[RunRecord]) -> Callable[[str, Say], Iterator[str]]:
    """Makes a sentence of what runs say; none where they say nothing."""

    def say(sentence: str, of_run: Say) -> Iterator[str]:
        if text := by_arm(comparison, runs, of_run):
            yield sentence.format(text)

    return say


def _section(run: RunRecord, *keys: str, cite: str = "") -> str:
    """A section of the recipe in a line: its name, and the fields that are set."""
    section = _at(run.recipe, *keys)
    if not isinstance(section, Mapping):
        return ""
    fields = {key: value for key, value in flat(section).items() if key != "name" and value not in (None, [], {}, "")}
    name = str(section.get("name") or "") + (f" [@{cite}]" if cite else "")
    shown = ", ".join(f"{key} = {_asset(value) if isinstance(value, str) else value}" for key, value in fields.items())
    return f"{name} ({shown})".strip() if shown else name


def _train_fields(run: RunRecord, *keys: str) -> str:
    train = run.recipe.get("train") or {}
    return ", ".join(f"{key.replace('_', ' ')} {train[key]}" for key in keys if train.get(key) is not None)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _text(value: Any, no: str = "") -> str:
    return "" if value is None else (no or "no") if value == "no" else str(value)
