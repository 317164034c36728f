"""Measuring a finished run by more than its recipe named: its kept samples by further metrics, its policy on further sets."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from prefopt import recipe
from prefopt.data import Tokenised
from prefopt.evaluation.breakdown import Measured, broken_down
from prefopt.evaluation.evaluation import Evaluation, with_sets
from prefopt.evaluation.held_out import distinct_prompts
from prefopt.evaluation.of_samples import SampleMetrics
from prefopt.evaluation.win_rates import key_of, key_of_sample
from prefopt.feedback import judge_records
from prefopt.policy import load_tokenizer
from prefopt.runs.additions import Additions
from prefopt.runs.folder import OF_SETS
from prefopt.runs.inspecting import held_out_rows, measure, trained
from prefopt.runs.manifest import circumstances, date_of
from prefopt.runs.planning import Plan, plan
from prefopt.runs.preparing import sample_metrics
from prefopt.runs.threads import take_threads
from prefopt.sources.scoring import columns_of
from prefopt.sources.writing import prompt_seen, shown_completion
from prefopt.support.dates import fixed_date
from prefopt.support.errors import PrefoptError
from prefopt.support.files import locked
from prefopt.training.devices import computing, entered_on_main_process, of_main_process, on_main_process


def add(additions: Additions, console: Console) -> Evaluation:
    """Measure what is added, at the start and at the end of the run, and keep it in its folder, a file for each name.

    Metrics of samples are taken of the samples that the run kept: nothing is sampled again, and no model but those of the feedback
    is loaded. On a further set the trained policy, and the one it started from, are measured like in the run.

    Returns:
        What was measured at the end.

    Raises:
        PrefoptError: whatever a user can put right; what was measured before that is kept.
    """
    folder, settings = additions.folder, trained(additions.folder.path, additions.overrides)
    manifest = folder.manifest()
    added = Evaluation({}, seed=0, confidence=settings.evaluate.confidence)
    with (
        computing(settings.train) as accelerator,
        entered_on_main_process(accelerator, lambda: locked(folder.path)),
        fixed_date(on_main_process(accelerator, lambda: date_of(manifest))),
    ):
        console = of_main_process(accelerator, console)
        take_threads(settings.train.threads, accelerator, manifest)
        made = {**circumstances(additions.settings, accelerator), "overrides": list(additions.overrides)}
        for name, before, after, more in _measured(additions, settings, manifest, accelerator, console):
            if accelerator.is_main_process:
                folder.write_measured(name, {**made, **more}, after, before)
            added = replace(
                after,
                observations={**added.observations, **after.observations},
                corpus={**added.corpus, **after.corpus},
                numbers={**added.numbers, **after.numbers},
            )
        accelerator.wait_for_everyone()
    return added


Named = tuple[str, Evaluation | None, Evaluation, Mapping[str, Any]]
"""The name of a file, what was measured at the start and at the end, and what else is to be said of how."""


def _measured(
    additions: Additions,
    settings: recipe.Recipe,
    manifest: Mapping[str, Any],
    accelerator: Accelerator,
    console: Console,
) -> Iterator[Named]:
    if additions.metrics:
        planned = plan(settings)
        for name in additions.metrics:
            yield _by_metric(additions, name, planned, manifest, accelerator, console)
    part = settings.evaluate.part
    for name in additions.sets:
        begun = {"device": manifest.get("device")}  # the rows are new, and so are not compared with those of the run
        before = measure(additions.settings, [name], accelerator, console, begun)
        after = measure(settings, [name], accelerator, console, begun)
        start, end = (with_sets(part, {part: _nothing(one[name]), **one}) for one in (before, after))
        rows, data = plan(settings).sets[name], settings.evaluate.sets[name].data
        yield (
            f"{OF_SETS}{name}",
            start,
            replace(end, samples=after[name].samples),
            {"rows": len(rows), "data": list(data)},
        )


def _nothing(like: Evaluation) -> Evaluation:
    return Evaluation({}, confidence=like.confidence, seed=like.seed)


def _by_metric(
    additions: Additions,
    name: str,
    planned: Plan,
    manifest: Mapping[str, Any],
    accelerator: Accelerator,
    console: Console,
) -> Named:
    """One metric on the samples of the recipe's part and sets."""
    settings, folder = planned.recipe, additions.folder
    evaluate, tokenizer = settings.evaluate, load_tokenizer(settings.policy)
    own = {name: evaluate.metrics[name]} if name in evaluate.metrics else {}
    alone = evaluate.model_copy(update={"metrics": own, "gold": evaluate.gold if name == "gold" else None})
    with console.status(f"measuring {name}"):
        metrics = sample_metrics(alone, accelerator)
        ends: list[dict[str, Evaluation]] = [{}, {}]
        for part in (evaluate.part, *(one for one in evaluate.sets if one not in additions.sets)):
            rows = held_out_rows(planned, part, tokenizer, console, manifest)
            prompts = list(islice(distinct_prompts(rows), evaluate.prompts))
            for end, kept in zip(ends, (folder.evaluation(part, 0), folder.last_evaluation(part)), strict=True):
                if kept is not None:
                    end[part] = _of_samples(kept, prompts, metrics, settings, accelerator, f"{folder}: {part}")
    if evaluate.part not in ends[1]:
        raise PrefoptError(
            f"{folder} has kept no evaluation of its {evaluate.part} rows, so no samples: nothing is measured"
        )
    before, after = (with_sets(evaluate.part, end) if evaluate.part in end else None for end in ends)
    assert after is not None
    judges = [record for feedback in metrics.feedbacks.values() for record in judge_records(feedback)]
    return name, before, after, {"judges": judges, "samples": "evaluations/"}


def _of_samples(
    kept: Evaluation,
    prompts: list[Tokenised],
    metrics: SampleMetrics,
    settings: recipe.Recipe,
    accelerator: Accelerator,
    where: str,
) -> Evaluation:
    """What the metrics say of samples that were kept."""
    each = settings.evaluate.completions
    of_prompts = [kept.samples[start : start + each] for start in range(0, len(kept.samples), each)]
    asked = [key_of(row.example) for row in prompts]
    if not asked or [key_of_sample(of_one[0]) for of_one in of_prompts] != asked:
        raise PrefoptError(
            f"{where} rows give other prompts than those that it kept {len(of_prompts)} samples for: bring the data back"
        )
    completions = [
        [shown_completion(one.get("messages", ()), one["completion"], one["prompt"]) for one in of_one]
        for of_one in of_prompts
    ]
    seen = [prompt_seen(of_one[0]["prompt"], (one.get("opening", ()) for one in of_one)) for of_one in of_prompts]
    scores = metrics(prompts, seen, completions, list(map(columns_of, of_prompts)), accelerator, kept.seed)
    values = {name: one.cpu() for name, one in scores.of_each.items()}
    samples = [
        {name: sample[name] for name in ("prompt", "task", "completion") if name in sample}
        | {name: one[b, k].item() for name, one in values.items()}
        for b, of_one in enumerate(of_prompts)
        for k, sample in enumerate(of_one)
    ]
    observations = broken_down({name: Measured(one, prompts) for name, one in values.items()}, settings.evaluate.by)
    return Evaluation(observations, scores.missing(), samples, kept.confidence, kept.seed, scores.of_all)
