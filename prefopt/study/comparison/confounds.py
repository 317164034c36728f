"""Whether a comparison is controlled: differences between arms that were not declared, and what the seeds have varied."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.recipe import Seeds, differences
from prefopt.recipe.flat import short_value, within
from prefopt.runs.extending import extensions, in_words
from prefopt.runs.folder import RunFolder
from prefopt.runs.records import RunOfArm
from prefopt.support.errors import PrefoptError
from prefopt.support.threads import PhaseThreads
from prefopt.support.wording import listed

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
"""Fields that change no result, except for rounding."""

OF_TRAINING = ("objective", "train", "source", "feedback", "cost", "reference")
"""Sections that do not matter for an arm that is evaluated and not trained."""

CLOSE = 0.01
"""Budgets whose relative difference is smaller than this are called equal."""


class EvaluatedOn(NamedTuple):
    """What tells held-out rows from others.

    Attributes:
        prompts: with what an environment said first; how rows are grouped is no part of it.
        tasks: which of its tasks a prompt was, as its rows number them.
    """

    prompts: Sequence[str]
    tasks: Sequence[str]


@dataclass(frozen=True)
class RunFiles:
    """What the files of a finished run say about it."""

    arm: str
    seed: int
    folder: Path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Resolved; an objective of one term is a section, not a list.

        Raises:
            PrefoptError: it is damaged, or no run's.
        """
        run = RunFolder(self.folder)
        tree = run.recipe_tree()
        terms, sections = tree.get("objective"), (tree.get(name) for name in ("source", "train", "evaluate"))
        if not isinstance(terms, list) or not all(isinstance(section, dict) for section in sections):
            raise PrefoptError(
                f"{run.recipe_file} is damaged: a run's has `objective`, `source`, `train` and `evaluate`; restore it or remove "
                "the run"
            )
        return tree | {"objective": terms[0] if len(terms) == 1 else {str(i): term for i, term in enumerate(terms)}}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json."""
        return RunFolder(self.folder).manifest()

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of the manifest that has keys; none where there is no such part."""
        found: Mapping[str, Any] = self.manifest.get(name, {})
        return found

    @cached_property
    def costs(self) -> dict[str, float]:
        """What training cost; empty for a run that did not record it."""
        costs: dict[str, float] = RunFolder(self.folder).summary().get("costs", {})
        return costs

    @cached_property
    def batches(self) -> dict[int, int]:
        """Step → a fingerprint of the rows of its batch; steps without one are left out."""
        return {line["step"]: line["batch"] for line in RunFolder(self.folder).history() if line.get("batch")}

    @cached_property
    def evaluated_on(self) -> "EvaluatedOn":
        """The held-out rows that it was evaluated on."""
        part = self.recipe["evaluate"]["part"]
        evaluation = RunFolder(self.folder).evaluation(part, step=0)
        if evaluation is None:
            raise PrefoptError(f"{self.folder} has no evaluation at step 0, which a finished run has: restore it")
        if evaluation.samples:
            asked = [_hash((sample["prompt"], sample.get("opening"))) for sample in evaluation.samples]
            return EvaluatedOn(sorted(asked), sorted(_hash(sample.get("task")) for sample in evaluation.samples))
        # Where nothing was sampled, the names of the groups are all that is kept of the rows.
        return EvaluatedOn(sorted({group for o in evaluation.observations.values() for group in o.groups}), [])

    @property
    def trained(self) -> bool:
        """Whether it trains at all; an arm with no step is a starting point that others are compared with."""
        return self.recipe["train"].get("steps") != 0


def confounds(
    results: Sequence[RunOfArm], baseline: str | None = None, varies: Sequence[str] = ("objective",)
) -> list[str]:
    """Differences between finished arms that are not declared, one sentence each; a controlled comparison has none.

    Arms are compared with the baseline seed by seed: every field of their recipes, and what their runs recorded of initial weights,
    data, order of batches, evaluation prompts and budgets. If the baseline is not trained, arms that are trained are compared with
    the first of them in how they train. Code, versions and device are compared over all runs.

    Args:
        results: of the study; runs without summary.json are left out.
        baseline: name of the arm that the others are compared with; None is the first.
        varies: sections and fields that differ on purpose.
    """
    runs = [RunFiles(r.arm, r.seed, r.folder) for r in results if RunFolder(r.folder).finished]
    if not runs:
        return []
    base = next((f.arm for f in runs if f.arm == baseline), runs[0].arm)
    sentences = _against(runs, base, varies)
    if not next(f for f in runs if f.arm == base).trained and (trained := [f for f in runs if f.trained]):
        sentences += [one for one in _against(trained, trained[0].arm, varies) if one not in sentences]
    bare = [f"{f.arm}, seed {f.seed}" for f in runs if not f.manifest]
    if bare:
        sentences.append(f"{listed(bare)}: no manifest.json, so weights, data, code and device cannot be compared")
    return [*sentences, *_extended(runs), *_among([f for f in runs if f.manifest])]


def _extended(runs: Sequence[RunFiles]) -> Iterator[str]:
    """Runs that came to an end and were trained on."""
    for one in runs:
        yield from (f"{one.arm}, seed {one.seed} was {in_words(record)}" for record in extensions(one.manifest))


def together(sentences: Sequence[str]) -> list[str]:
    """The same, with what is said of several arms in one sentence: `PPO and RLAIF: its train rows are not those of DPO`."""
    arms: dict[str, list[str]] = {}
    for sentence in sentences:
        arm, colon, what = sentence.partition(": ")
        arms.setdefault(what if colon else sentence, []).extend([arm] * bool(colon))
    return [f"{listed(of)}: {_of_several(what) if len(of) > 1 else what}" if of else what for what, of in arms.items()]


def _of_several(what: str) -> str:
    """What is said of one arm, of several."""
    for one, several in (("its ", "their "), ("it starts ", "they start "), ("it is ", "they are ")):
        what = several + what.removeprefix(one) if what.startswith(one) else what
    return what


def _against(runs: Sequence[RunFiles], base: str, varies: Sequence[str]) -> list[str]:
    """Differences between each arm and this one, seed by seed; each sentence once."""
    of_base = {f.seed: f for f in runs if f.arm == base}
    by_arm: dict[str, dict[str, None]] = {f.arm: {} for f in runs if f.arm != base}
    for one in runs:
        if one.arm != base and one.seed in of_base:
            for sentence in _between(one, of_base[one.seed], varies):
                by_arm[one.arm][sentence] = None
    for arm in by_arm:
        for sentence in _budgets([f for f in runs if f.arm == arm and f.seed in of_base], of_base):
            by_arm[arm][sentence] = None
    return [f"{arm}: {s}" for arm, sentences in by_arm.items() for s in sentences]


def _between(one: RunFiles, base: RunFiles, varies: Sequence[str]) -> Iterator[str]:
    untrained = next((f.arm for f in (one, base) if not f.trained), None)
    ignored = ("seed", *IMMATERIAL, *varies, *(OF_TRAINING if untrained else ()))
    found = differences(as_evaluated(one.recipe), as_evaluated(base.recipe))
    for key, (here, there) in found.items():
        inherited = "source.rollouts" + key.removeprefix("evaluate") if within(key, ["evaluate.environment"]) else ""
        told = inherited in found and not within(inherited, ignored)
        if not (within(key, ignored) or told):
            yield f"{key} is {short_value(here)}, and {short_value(there)} in {base.arm}"
    recorded = one.manifest and base.manifest
    if recorded and one.part("model").get("fingerprint") != base.part("model").get("fingerprint"):
        yield f"it starts from other weights than {base.arm}"
    if one.evaluated_on.prompts != base.evaluated_on.prompts:
        yield f"it is measured on other prompts than {base.arm}"
    elif one.evaluated_on.tasks != base.evaluated_on.tasks:
        yield f"it is measured on tasks of other numbers (column `task`), which are other seeds, than {base.arm}"
    if not untrained:
        yield from _in_training(one, base)


def as_evaluated(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe with the environment in which samples are written: that of the rollouts, where `evaluate` names none."""
    source, evaluate = ((tree.get(name) or {}) for name in ("source", "evaluate"))
    inherited = (source.get("rollouts") or {}).get("environment")
    if inherited is None or evaluate.get("environment") is not None:
        return tree
    return {**tree, "evaluate": {**evaluate, "environment": inherited}}


def _in_training(one: RunFiles, base: RunFiles) -> Iterator[str]:
    for part in ("train", "validation", "test") if one.manifest and base.manifest else ():
        if _fingerprint(one.part("data").get(part)) != _fingerprint(base.part("data").get(part)):
            yield f"its {part} rows are not those of {base.arm}"
    shared = [step for step in one.batches if step in base.batches]
    odd = [step for step in shared if one.batches[step] != base.batches[step]]
    if odd:
        yield f"its batches are not those of {base.arm}, from step {odd[0]} on"


def _budgets(runs: Sequence[RunFiles], of_base: Mapping[int, RunFiles]) -> Iterator[str]:
    """Differences between the budgets of an arm and of the baseline, summed over the seeds that both have."""
    pairs = [(one, of_base[one.seed]) for one in runs]
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


def _among(runs: Sequence[RunFiles]) -> Iterator[str]:
    """Differences in what should be the same for all runs: code, versions, device, plug-ins."""
    if not runs:
        return
    code = {json.dumps(f.part("git").get("prefopt"), sort_keys=True) for f in runs}
    if len(code) > 1:
        yield f"the runs were made by {len(code)} states of prefopt's code"
    elif any((f.part("git").get("prefopt") or {}).get("changed") for f in runs):
        yield "prefopt's code had changes that are not committed, so the commit does not tell what ran"
    for name in runs[0].part("versions"):
        if len(versions := {str(f.part("versions").get(name)) for f in runs}) > 1:
            yield f"the runs were made with {name} {' and '.join(sorted(versions))}"
    for name in ("type", "name", "threads", "precision", "processes"):
        if len(values := {str(_of_device(f, name)) for f in runs}) > 1:
            yield f"the runs differ in device {name}: {' and '.join(sorted(values))}"
    edited: dict[str, set[str]] = {}
    for f in runs:
        for name, digest in f.part("plugins").items():
            edited.setdefault(name, set()).add(digest)
    for name, digests in edited.items():
        if len(digests) > 1:
            yield f"{name} was edited between runs"


def _of_device(run: RunFiles, name: str) -> Any:
    value = run.part("device").get(name)
    return PhaseThreads.of(value) or value if name == "threads" else value


SOURCES = {
    "data": "the split of the data",
    "init": "initial weights",
    "order": "the order of batches",
    "sampling": "completions drawn in training",
    "evaluation": "completions drawn to evaluate",
}


def varied_randomness(results: Sequence[RunOfArm]) -> dict[str, bool]:
    """For each source of randomness, whether it did differ between the seeds of some arm, judged by what the runs recorded."""
    arms: dict[str, list[RunFiles]] = {}
    for r in results:
        files = RunFiles(r.arm, r.seed, r.folder)
        if RunFolder(r.folder).finished and files.manifest:
            arms.setdefault(r.arm, []).append(files)
    varied = dict.fromkeys(Seeds.model_fields, False)
    for runs in arms.values():
        fingerprints = [_randomness(run) for run in runs]
        for name in varied:
            varied[name] |= len({one[name] for one in fingerprints if one[name] is not None}) > 1
    return varied


def _randomness(run: RunFiles) -> dict[str, Any]:
    """Source of randomness → a fingerprint of what came of it in a run; None where the source played no part."""
    seeds, recipe, model = run.part("seeds"), run.recipe, run.part("model")
    return {
        "data": json.dumps({name: _fingerprint(part) for name, part in run.part("data").items()}),
        "init": (model.get("fingerprint"), model.get("critic")),
        "order": next(iter(run.batches.values()), None),
        "sampling": seeds.get("sampling") if recipe["source"]["rollouts"] is not None and run.trained else None,
        "evaluation": seeds.get("evaluation") if recipe["evaluate"]["prompts"] else None,
    }


def _hash(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def _fingerprint(part: Any) -> Any:
    """Of a part of the data, as a manifest has it."""
    return part.get("fingerprint") if isinstance(part, Mapping) else part


def seeds_note(results: Sequence[RunOfArm]) -> str:
    """What differed between the seeds, and what did not, so that intervals say nothing about it; in a sentence or two."""
    seeds = {r.seed for r in results}
    if len(seeds) < 2:
        return "One seed: how far results would move with another is not known."
    varied = varied_randomness(results)
    yes, no = ([SOURCES[name] for name, differs in varied.items() if differs is wanted] for wanted in (True, False))
    note = (
        f"The {len(seeds)} seeds varied {listed(yes)}." if yes else f"Nothing differed between the {len(seeds)} seeds."
    )
    return f"{note} {listed(no).capitalize()} did not vary: of other ones the intervals say nothing." if no else note
