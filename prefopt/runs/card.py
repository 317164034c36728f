"""The model card of a run: README.md in its policy/, in the form of the Hugging Face hub."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from prefopt import recipe
from prefopt.objectives.listing import entry
from prefopt.runs.folder import RunFolder
from prefopt.support.downloads import HUB_ID
from prefopt.support.errors import PrefoptError
from prefopt.support.files import write_whole
from prefopt.support.wording import counted, interval, left, number

NAME = "README.md"

TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

{{ kind }} from {{ base }}, trained with {{ objectives }} by prefopt {{ version }} (`prefopt-research` on PyPI).

## Results

{{ results }}

## Training

{{ training }}

<details>
<summary>The whole recipe (folders of the machine that it ran on are shortened)</summary>

```yaml
{{ recipe }}```

</details>

## Licence

Not known to the run that wrote this card: it follows from those of the base and of the data. Put it at the head of this file before
you share the model. Neither was the model examined for what it should not be used for.
"""

RESULTS = """\
On {rows} held-out {part} rows{samples}, before and after {steps} steps, with {confidence:.0%} intervals over prompts. They are of
this run and its one seed ({seed}), and say nothing of what another seed would give.

| metric | before | after | change |
|---|---|---|---|
{lines}

What each metric is: docs/metrics.md of prefopt."""


def write_card(run: RunFolder, folder: Path) -> None:
    """Write the card of a finished run into a folder that holds its model. One that is there stays as it is."""
    if not (folder / NAME).exists():
        card = card_of(run, adapter=(folder / "adapter_config.json").is_file())
        write_whole(folder / NAME, str(card) + "\n")


def card_of(run: RunFolder, adapter: bool = False) -> ModelCard:
    """The card of a finished run.

    Args:
        run: finished.
        adapter: the model is saved as an adapter, for peft.

    Raises:
        PrefoptError: the run has not come to its end, or a file of its folder is damaged.
    """
    settings, summary = run.recipe(), run.summary()
    writes = run.training()["writes"] if run.trained else True
    manifest = run.manifest()
    base = str(manifest.get("model", {}).get("name", settings.policy.model[0]))
    names = [term.name for term in settings.objective]
    data = ModelCardData(
        base_model=_hub_ids(settings.policy.model)[:1] or None,
        datasets=_hub_ids(settings.source.data) or None,
        library_name="peft" if adapter else "transformers",
        license="unknown",
        pipeline_tag="text-generation" if writes else "text-classification",
        tags=[
            "prefopt",
            *(name.lower() for name in names if ":" not in name),
            *(["reward-model"] if not writes else []),
        ],
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=settings.name,
        kind=("A policy" if writes else "A reward model") + (" (an adapter, for peft)" if adapter else ""),
        base=f"`{_shared_name(base)}`",
        objectives=" + ".join(map(_cited, names)),
        version=manifest.get("versions", {}).get("prefopt-research", ""),
        results=_results(settings, summary, manifest),
        training="\n".join(f"- {line}" for line in _training(settings, summary, manifest)),
        recipe=yaml.safe_dump(_shared_names(settings.model_dump(mode="json")), sort_keys=False, allow_unicode=True),
    )


def _hub_ids(names: recipe.Names) -> list[str]:
    """Those of names that are ids of the hub, and no folders or files here."""
    return [name for name in names if HUB_ID.fullmatch(name) and not Path(name).exists()]


def _shared_name(name: str) -> str:
    """A name as others can read it: of a file or folder of this machine its last parts."""
    here = os.path.isabs(name) and os.path.exists(os.path.dirname(name))
    return "/".join(Path(name).parts[1:][-2:]) if here else name


def _shared_names(value: Any) -> Any:
    """A recipe's tree with such names throughout."""
    if isinstance(value, dict):
        return {key: _shared_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shared_names(item) for item in value]
    return _shared_name(value) if isinstance(value, str) else value


def _optimiser(optimizer: recipe.Optimizer) -> str:
    """`adamw`, or with its fields `muon (momentum = 0.9)`."""
    fields = ", ".join(f"{key} = {value}" for key, value in optimizer.fields.items())
    return f"{optimizer.name} ({fields})" if fields else optimizer.name


def _cited(name: str) -> str:
    try:
        paper = entry(name).paper
    except PrefoptError:  # a class of the user's whose file has gone
        paper = ""
    return f"{name} ([arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else name


def _results(settings: recipe.Recipe, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    before, after, change = (summary.get(part, {}) for part in ("before", "after", "change"))
    names = [name for name, value in after.items() if isinstance(value, Mapping)]
    if not names:
        return "Nothing was measured: there were no held-out rows."
    lines = "\n".join(
        f"| {name} | {_interval(before.get(name))} | {_interval(after[name])} | {_interval(change.get(name), signed=True)} |"
        for name in names
    )
    on, sampled = summary["evaluated_on"], after.get("length", {}).get("prompts")
    return RESULTS.format(
        rows=on["rows"],
        samples=f" and samples of {counted(sampled, 'prompts')}" if sampled not in (None, on["rows"]) else "",
        part=on["split"],
        steps=summary["steps"],
        confidence=settings.evaluate.confidence,
        seed=settings.seed,
        lines=lines,
    )


def _interval(estimate: Any, signed: bool = False) -> str:
    if not isinstance(estimate, Mapping) or estimate.get("value") is None:
        return ""
    low, high = estimate.get("low"), estimate.get("high")
    return number(estimate["value"], signed) + (
        f" {interval(low, high)}" if low is not None and high is not None else ""
    )


def _training(settings: recipe.Recipe, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    train, costs = settings.train, summary.get("costs", {})
    for objective in manifest.get("objectives") or [{"name": term.name, **term.fields} for term in settings.objective]:
        fields = ", ".join(f"{name} = {value}" for name, value in objective.items() if name != "name")
        yield f"objective: {_cited(objective['name'])}" + (f", {fields}" if fields else "")
    train_rows = manifest.get("data", {}).get("train", {})
    rows = train_rows.get("rows", "?")
    if isinstance(trained_on := train_rows.get("trained_on"), int):
        rows = left(trained_on, rows)
    yield f"data: {', '.join(f'`{_shared_name(name)}`' for name in settings.source.data)}, {rows} rows to train on"
    yield from manifest.get("notes", ())
    steps = f"{summary['steps']} steps of {train.batch_size} prompts"
    yield f"{steps}, {_optimiser(train.optimizer)}, learning rate {train.lr:g}, seed {settings.seed}"
    if stopped := summary.get("stopped"):
        yield f"stopped early: {stopped}"
    device = manifest.get("device", {})
    where = device.get("name") or device.get("type", "unknown")
    yield f"{costs.get('seconds', 0):.0f} s on {device.get('processes', 1)} × {where}"
    versions = manifest.get("versions", {})
    yield "versions: " + ", ".join(f"{name} {versions[name]}" for name in versions if versions[name])
