"""Whether a comparison is controlled: what differs between arms beside what was meant to, and what seeds varied."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from prefopt.recipe import Seeds
from prefopt.recipe.renamed import with_new_names


class Result(Protocol):
    """A run of a study, as prefopt.compare has it."""

    @property
    def arm(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102


IMMATERIAL = (
    *(
        "name",
        "variables",
        "track",
        "seeds",
        "train.micro_batch_size",
        "train.checkpoint_every",
        "train.keep_checkpoints",
    ),
    *(
        "source.rollouts.batch_size",
        "evaluate.batch_size",
        "policy.gradient_checkpointing",
        "source.embeddings.batch_size",
    ),
)
"""Fields that change no result, beyond rounding."""

OF_TRAINING = ("objective", "train", "source", "feedback", "cost", "reference")
"""Sections that mean nothing to an arm that is measured and not trained."""

CLOSE = 0.01
"""Budgets that differ by less than this share are called equal."""


@dataclass(frozen=True)
class Facts:
    """What a finished run says about itself."""

    arm: str
    seed: int
    folder: Path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Resolved; an objective of one term as a section, not as a list."""
        tree = with_new_names(yaml.safe_load((self.folder / "recipe.yaml").read_text()), where=None)
        terms = tree["objective"]
        return tree | {"objective": terms[0] if len(terms) == 1 else {str(i): term for i, term in enumerate(terms)}}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What it was made of."""
        content: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return content

    @cached_property
    def costs(self) -> dict[str, float]:
        """What it cost; empty of a run from before costs were kept."""
        content: dict[str, float] = json.loads((self.folder / "summary.json").read_text()).get("costs", {})
        return content

    @cached_property
    def batches(self) -> dict[int, int]:
        """A number for the rows of each batch, by step; without steps where it is not known."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["batch"] for line in lines if line.get("batch")}

    @cached_property
    def asked(self) -> str:
        """A hash of the held-out prompts that it was measured on."""
        part = self.recipe["evaluate"]["part"]
        content = json.loads((self.folder / "evaluations" / f"{part}-step-000000.json").read_text())
        groups = sorted({group for o in content["observations"].values() for group in o["groups"]})
        prompts = [sample["prompt"] for sample in content["samples"]]
        return hashlib.blake2b(repr((groups, prompts)).encode(), digest_size=16).hexdigest()

    @property
    def trained(self) -> bool:
        """Whether there was a step at all; an arm without one is a start that others are measured against."""
        return self.recipe["train"].get("steps") != 0


def confounds(
    results: Sequence[Result], baseline: str | None = None, varies: Sequence[str] = ("objective",)
) -> list[str]:
    """What differs between finished arms beside the declared variation, a sentence each; none is a controlled comparison.

    Arms are compared with the baseline seed by seed: every field of their recipes, and what their runs say of initial weights,
    data, order of batches, evaluation prompts and budgets. A baseline that is not trained says nothing of how arms are trained: in
    that, they are compared with the first of those that are. Code, versions and device are compared over all runs.

    Args:
        results: of the study; those without a summary.json are passed over.
        baseline: name of the arm that others are compared with; None is the first.
        varies: sections and fields that differ on purpose.
    """
    facts = [Facts(r.arm, r.seed, r.folder) for r in results if (r.folder / "summary.json").exists()]
    if not facts:
        return []
    base = next((f.arm for f in facts if f.arm == baseline), facts[0].arm)
    found = _against(facts, base, varies)
    if not next(f for f in facts if f.arm == base).trained and (trained := [f for f in facts if f.trained]):
        found += [said for said in _against(trained, trained[0].arm, varies) if said not in found]
    return found + list(_among(facts))


def _against(facts: Sequence[Facts], base: str, varies: Sequence[str]) -> list[str]:
    """What differs between each arm and this one."""
    of_base = {f.seed: f for f in facts if f.arm == base}
    found: dict[str, dict[str, None]] = {f.arm: {} for f in facts if f.arm != base}
    for one in facts:
        if one.arm != base and one.seed in of_base:
            for sentence in _between(one, of_base[one.seed], varies):
                found[one.arm][sentence] = None
    for arm in found:
        for sentence in _budgets([f for f in facts if f.arm == arm and f.seed in of_base], of_base):
            found[arm][sentence] = None
    return [f"{arm}: {s}" for arm, sentences in found.items() for s in sentences]


def _between(one: Facts, base: Facts, varies: Sequence[str]) -> Iterator[str]:
    untrained = next((f.arm for f in (one, base) if not f.trained), None)
    ignored = (*IMMATERIAL, *varies, *(OF_TRAINING if untrained else ()))
    for key, here, there in recipe_differences(one.recipe, base.recipe):
        if not within(key, ignored):
            yield f"{key} is {said(here)}, and {said(there)} in {base.arm}"
    if one.manifest["model"]["fingerprint"] != base.manifest["model"]["fingerprint"]:
        yield f"it starts from other weights than {base.arm}"
    if one.asked != base.asked:
        yield f"it is measured on other prompts than {base.arm}"
    if not untrained:
        yield from _in_training(one, base)


def _in_training(one: Facts, base: Facts) -> Iterator[str]:
    for part in ("train", "validation", "test"):
        mine, theirs = (f.manifest["data"].get(part, {}) for f in (one, base))
        if mine.get("fingerprint") != theirs.get("fingerprint"):
            yield f"its {part} rows are not those of {base.arm}"
    shared = [step for step in one.batches if step in base.batches]
    odd = [step for step in shared if one.batches[step] != base.batches[step]]
    if odd:
        yield f"its batches are not those of {base.arm}, from step {odd[0]} on"


def _budgets(facts: Sequence[Facts], of_base: Mapping[int, Facts]) -> Iterator[str]:
    """What an arm spent beside the baseline, over the seeds that both have."""
    pairs = [(one, of_base[one.seed]) for one in facts]
    if not pairs or not all(one.trained and base.trained for one, base in pairs):
        return
    if not all(one.costs and base.costs for one, base in pairs):
        yield f"its budget and that of {pairs[0][1].arm} cannot be compared: a run does not say what it cost"
        return
    for name in ("labels", "trained_tokens"):
        mine, theirs = (sum(f.costs[name] for f in side) for side in zip(*pairs, strict=True))
        if abs(mine - theirs) > CLOSE * max(mine, theirs):
            share = (
                f"{mine / theirs:.2f} times {pairs[0][1].arm}'s" if theirs else f"some, and none in {pairs[0][1].arm}"
            )
            yield f"its budget differs: {'labels' if name == 'labels' else 'tokens trained on'} are {share}"


def _among(facts: Sequence[Facts]) -> Iterator[str]:
    """What should be one for all runs."""
    code = {json.dumps(f.manifest["git"].get("prefopt"), sort_keys=True) for f in facts}
    if len(code) > 1:
        yield f"the runs were made by {len(code)} states of prefopt's code"
    elif any((f.manifest["git"].get("prefopt") or {}).get("changed") for f in facts):
        yield "prefopt's code had changes that are not committed, so the commit does not tell what ran"
    for name in facts[0].manifest["versions"]:
        if len(versions := {str(f.manifest["versions"].get(name)) for f in facts}) > 1:
            yield f"the runs were made with {name} {' and '.join(sorted(versions))}"
    for name in ("type", "name", "threads", "precision", "processes"):
        if len(values := {str(f.manifest["device"][name]) for f in facts}) > 1:
            yield f"the runs differ in device {name}: {' and '.join(sorted(values))}"
    edited: dict[str, set[str]] = {}
    for f in facts:
        for name, digest in f.manifest["plugins"].items():
            edited.setdefault(name, set()).add(digest)
    for name, digests in edited.items():
        if len(digests) > 1:
            yield f"{name} was edited between runs"


def recipe_differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys in which two resolved recipes differ, with both values; a section that one lacks is one difference."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for k in dict.fromkeys([*one, *other]):
            yield from recipe_differences(one.get(k), other.get(k), f"{key}.{k}".lstrip("."))
    elif one != other and key != "seed":
        yield key, one, other


def within(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or of a section that is."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def said(value: Any) -> str:
    """A value of a recipe, short."""
    if isinstance(value, Mapping):
        return str(value.get("name", "given" if value else "none"))
    if isinstance(value, list) and len(value) == 1:
        return said(value[0])
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"…{text[-59:]}"


CALLED = {
    "data": "the split of the data",
    "init": "initial weights",
    "order": "the order of batches",
    "sampling": "completions drawn in training",
    "evaluation": "completions drawn to evaluate",
}


def varied(results: Sequence[Result]) -> dict[str, bool]:
    """For each source of chance, whether it did differ between the seeds of an arm; by what runs say, not by their seeds."""
    arms: dict[str, list[Facts]] = {}
    for r in results:
        if (r.folder / "summary.json").exists():
            arms.setdefault(r.arm, []).append(Facts(r.arm, r.seed, r.folder))
    found = dict.fromkeys(Seeds.model_fields, False)
    for facts in arms.values():
        seen = [_chances(f) for f in facts]
        for name in found:
            known = {one[name] for one in seen if one[name] is not None}
            found[name] |= len(known) > 1
    return found


def _chances(facts: Facts) -> dict[str, Any]:
    """What tells whether a source of chance came out alike in two runs; None where it had no part."""
    seeds, recipe = facts.manifest["seeds"], facts.recipe
    model = facts.manifest["model"]
    return {
        "data": json.dumps({name: part["fingerprint"] for name, part in facts.manifest["data"].items()}),
        "init": (model["fingerprint"], model.get("critic")),
        "order": next(iter(facts.batches.values()), None),
        "sampling": seeds["sampling"] if recipe["source"]["rollouts"] is not None and facts.trained else None,
        "evaluation": seeds["evaluation"] if recipe["evaluate"]["prompts"] else None,
    }


def claim(results: Sequence[Result]) -> str:
    """What the spread over seeds is a spread over, in words, and what it says nothing about."""
    seeds = {r.seed for r in results}
    if len(seeds) < 2:
        return "One seed: how far results would move with another is not known."
    chances = varied(results)
    yes, no = ([CALLED[name] for name, so in chances.items() if so is wanted] for wanted in (True, False))
    said = (
        f"The {len(seeds)} seeds varied {_listed(yes)}." if yes else f"Nothing differed between the {len(seeds)} seeds."
    )
    return f"{said} {_listed(no).capitalize()} did not vary: of other ones the intervals say nothing." if no else said


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
