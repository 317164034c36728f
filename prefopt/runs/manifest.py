"""What a run was made of: versions, code, data, weights, device, seeds."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from prefopt import recipe
from prefopt.data import Example, Tokenised
from prefopt.feedback import judge_records
from prefopt.policy import Scorer, commit_of
from prefopt.policy.configuration import configuration
from prefopt.support.dates import current_date
from prefopt.support.errors import PrefoptError
from prefopt.support.fingerprints import fingerprint_tensors, fingerprint_weights
from prefopt.support.given import Given
from prefopt.support.threads import threads_of_phases
from prefopt.training.environment import ARITHMETIC, WANDB_OBEYED, given

if TYPE_CHECKING:
    from prefopt.runs.preparing import Prepared

PACKAGES = (
    "prefopt-research",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "numpy",
    "scipy",
)


def _commit(model: str) -> dict[str, str]:
    """Of a model in the hub's cache, which its name alone does not tell: what `main` is, changes."""
    commit = commit_of(model)
    return {} if commit is None else {"commit": commit}


def manifest(prepared: "Prepared") -> dict[str, Any]:
    """Everything that a reader needs to tell whether two runs were made of the same things, before the first step."""
    settings, model, plan = prepared.recipe, prepared.models.trained, prepared.plan
    critic = dict(model.named_children()).get("critic")
    logged = () if settings.track.wandb is None else WANDB_OBEYED
    others = prepared.measuring | prepared.others
    data = {name: described(rows) for name, rows in prepared.data.items()}
    data["train"]["trained_on"] = prepared.rows  # as batches take them: without ties, say
    configured = {"policy.model": model, **({} if critic is None else {"the critic": critic}), **others}
    return {
        **circumstances(settings, prepared.accelerator),
        "environment": given(ARITHMETIC + logged),
        "model": {
            "name": plan.model,
            **_commit(plan.model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "fingerprint": fingerprint_weights(model, but="critic."),  # a critic aside, arms start alike
            **_base(model),
            **({} if critic is None else {"critic": fingerprint_weights(critic)}),
        },
        "others": {name: fingerprint_weights(other) for name, other in others.items()},
        "configurations": {name: configuration(one) for name, one in configured.items()},
        "judges": [
            one
            for feedback in (*prepared.feedbacks.values(), *prepared.judging.values())
            for one in judge_records(feedback)
        ],
        "data": data,
        "counts": plan.counts,
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
        "seeds": {name: settings.seed_of(name) for name in recipe.Seeds.model_fields},
        # A recipe leaves defaults out, and another version may have other ones.
        "objectives": [{"name": term.name, **vars(term.objective)} for term in prepared.terms],
    }


def _base(trained: nn.Module) -> dict[str, str]:
    """A hash of the base's own weights where what is beside them starts at random: an adapter, or the head of a scorer."""
    model: Any = dict(trained.named_children()).get("model")
    if isinstance(model, PeftModel):
        below: nn.Module = model.get_base_model().base_model  # type: ignore[assignment]
        own = {name: weights for name, weights in below.named_parameters() if not weights.requires_grad}
        return {"base": fingerprint_tensors(own)}
    return {"base": fingerprint_weights(model.base_model)} if isinstance(trained, Scorer) else {}


def date_of(manifest: Mapping[str, Any]) -> date:
    """The date that chat templates write in what this is the manifest of; where there is none yet, today's.

    Raises:
        PrefoptError: what stands there is none.
    """
    begun = str(manifest.get("date") or manifest.get("started") or "")  # older manifests have only when they were begun
    try:
        return date.fromisoformat(begun[:10]) if begun else current_date()
    except ValueError:
        raise PrefoptError(f"manifest.json is damaged: {begun!r} is no date; restore it, or remove it") from None


def circumstances(settings: recipe.Section, accelerator: Accelerator) -> dict[str, Any]:
    """When, by what command, with which code, on what: of anything that a recipe describes."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "date": current_date().isoformat(),
        "command": sys.argv,
        "versions": versions(),
        "git": {
            "working_directory": git_state(Path.cwd()),
            "prefopt": None if "site-packages" in __file__ else git_state(Path(__file__).parent),
        },
        "plugins": fingerprint_plugins(settings.to_tree()),
        "device": {
            "type": accelerator.device.type,
            "name": torch.cuda.get_device_name()
            if accelerator.device.type == "cuda"
            else platform.processor() or platform.machine(),
            "processes": accelerator.num_processes,
            "threads": asdict(threads_of_phases()),
            "precision": accelerator.mixed_precision,
            "float32_matmul": torch.get_float32_matmul_precision(),
        },
        "environment": given(),
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that compute; None of one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def described(rows: Sequence[Tokenised]) -> dict[str, Any]:
    """How many rows a part of the data has, and hashes of them, in order, which read them once.

    `fingerprint` is of what is learnt: token ids and judgements. `columns` is of which tokens the policy wrote, and of all that
    feedback may read beside them, such as the answer that a rule compares with.
    """
    learnt, beside = (hashlib.blake2b(digest_size=16) for _ in range(2))
    for row in rows:
        learnt.update(repr((row.prompt_ids, row.completion_ids, row.scores, row.preference)).encode())
        columns = json.dumps(dict(row.columns), sort_keys=True, default=repr)
        beside.update(f"{row.masks}{columns}".encode("utf-8", "surrogatepass"))
    return {"rows": len(rows), "fingerprint": learnt.hexdigest(), "columns": beside.hexdigest()}


def fingerprint_examples(rows: Sequence[Example]) -> str:
    """A hash of prompts, completions and judgements as text, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(repr((row.prompt, row.completions, row.scores, row.preference)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def changed_parts(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two manifests say the numbers of a run are of, where they differ, in words; what one of them lacks is not compared."""
    models, others = (_part(begun, "model"), _part(now, "model")), (_part(begun, "others"), _part(now, "others"))
    data = _part(begun, "data"), _part(now, "data")
    changed = [f"the {name} rows" for name in _differing(*data)]
    changed += ["the weights of policy.model"] * ("fingerprint" in _differing(*models))
    changed += ["the weights of the critic"] * ("critic" in _differing(*models))
    changed += [f"the model {name!r}" for name in _differing(*others)]
    changed += _reconfigured(_part(begun, "configurations"), _part(now, "configurations"))
    judges = (one.get("judges") or () for one in (begun, now))
    answerers = [(before, after) for before, after in zip(*judges, strict=False) if _differing(before, after)]
    return [*changed, *(f"the judge or what it answers by ({_named(before, after)})" for before, after in answerers)]


def _reconfigured(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The models whose configurations differ, with the settings; one that a version of transformers added is not compared."""
    changed = []
    for name in begun.keys() & now.keys():
        before, after = _part(begun, name), _part(now, name)
        if keys := [key for key in sorted(before.keys() & after.keys()) if before[key] != after[key]]:
            changed.append(f"the configuration of {name} ({', '.join(keys)})")
    return sorted(changed)


def _named(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What changed of a judge."""
    return "; ".join(f"{key}: {before[key]} → {after[key]}" for key in sorted(_differing(before, after)))


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = content.get(name)
    return part if isinstance(part, Mapping) else {}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys of both whose values differ, in what both have of them and know."""
    known = [key for key in one.keys() & other.keys() if one[key] is not None and other[key] is not None]
    return [
        key
        for key in sorted(known)
        if (
            _differing(one[key], other[key])
            if isinstance(one[key], Mapping) and isinstance(other[key], Mapping)
            else one[key] != other[key]
        )
    ]


def fingerprint_plugins(tree: Any) -> dict[str, str]:
    """A hash of the file of every `file.py:Name` and `module:name` and of every object in a recipe, and of what these files import.

    The same recipe with an edited file is another run. What prefopt itself brings, and what is installed, goes by its version.
    """
    if isinstance(tree, dict | list):
        items = tree.values() if isinstance(tree, dict) else tree
        return {name: digest for item in items for name, digest in fingerprint_plugins(item).items()}
    if isinstance(tree, Given):
        return {tree: tree.digest}
    file = _file_of(tree) if isinstance(tree, str) and ":" in tree else None
    if file is None:
        return {}
    files = {tree: file} | {str(other): other for other in _imported_beside(file)}
    return {name: hashlib.blake2b(one.read_bytes(), digest_size=16).hexdigest() for name, one in files.items()}


def _imported_beside(file: Path) -> list[Path]:
    """The Python files in a plug-in's folder and below that have been imported, plug-ins themselves and packages aside."""
    folder, standard = file.resolve().parent, Path(sysconfig.get_paths()["stdlib"]).resolve()
    found = set()
    for name, module in list(sys.modules.items()):
        origin = Path(getattr(module, "__dict__", {}).get("__file__") or "")
        if name == "__main__" or name.startswith("prefopt") or origin.suffix != ".py" or not origin.is_file():
            continue
        other, installed = origin.resolve(), {"site-packages", "dist-packages"} & set(origin.parts)
        if other.is_relative_to(folder) and not installed and not other.is_relative_to(standard):
            found.add(other)
    return sorted(found - {file.resolve()})


def _file_of(name: str) -> Path | None:
    """The Python file that a name of a recipe leads to; None for any other text."""
    place, _, what = name.rpartition(":")
    if place.endswith(".py"):
        file = Path(place).expanduser()
    else:
        module = sys.modules.get(place)  # it has been imported by now, if it is one
        if not hasattr(module, what.partition(".")[0]) or place.split(".")[0] == "prefopt":
            return None
        file = Path(getattr(module, "__file__", None) or "")
    return file if file.suffix == ".py" and file.is_file() else None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository around a folder, and whether it has uncommitted changes; None outside one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10, cwd=folder
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
