"""What a run was made of: versions, code, data, weights, device, seeds."""

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from prefopt import recipe
from prefopt.data import Example, Tokenised
from prefopt.feedback import judges
from prefopt.support.dates import current_date
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.support.given import Given

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


def manifest(prepared: "Prepared") -> dict[str, Any]:
    """Everything that a reader needs to tell whether two runs were made of the same things, before the first step."""
    settings, model, plan = prepared.recipe, prepared.models.trained, prepared.plan
    critic = dict(model.named_children()).get("critic")
    return {
        **circumstances(settings, prepared.accelerator),
        "model": {
            "name": plan.model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "fingerprint": fingerprint_weights(model, but="critic."),  # a critic aside, arms start alike
            **({} if critic is None else {"critic": fingerprint_weights(critic)}),
        },
        "others": {name: fingerprint_weights(other) for name, other in prepared.others.items()},
        "judges": [one for feedback in prepared.feedbacks.values() for one in judges(feedback)],
        "data": {
            name: {"rows": len(rows), "fingerprint": fingerprint_rows(rows)} for name, rows in prepared.data.items()
        },
        "warnings": list(plan.warnings),
        "seeds": {name: settings.seed_of(name) for name in recipe.Seeds.model_fields},
        # A recipe leaves defaults out, and another version may have other ones.
        "objectives": [{"name": term.name, **vars(term.objective)} for term in prepared.terms],
    }


def date_of(manifest: Mapping[str, Any]) -> date:
    """The date that chat templates write in what this is the manifest of; where there is none yet, today's."""
    begun = str(manifest.get("date") or manifest.get("started") or "")  # older manifests have only when they were begun
    return date.fromisoformat(begun[:10]) if begun else current_date()


def circumstances(settings: recipe.Section, accelerator: Accelerator) -> dict[str, Any]:
    """When, by what command, with which code, on what: of anything that a recipe describes."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "date": current_date().isoformat(),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
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
            "threads": torch.get_num_threads(),
            "precision": accelerator.mixed_precision,
        },
    }


def fingerprint_rows(rows: Sequence[Tokenised]) -> str:
    """A hash of the token ids and judgements, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(repr((row.prompt_ids, row.completion_ids, row.scores, row.preference)).encode())
    return digest.hexdigest()


def fingerprint_examples(rows: Sequence[Example]) -> str:
    """A hash of prompts, completions and judgements as text, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(repr((row.prompt, row.completions, row.scores, row.preference)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fingerprint_plugins(tree: Any) -> dict[str, str]:
    """A hash of every `file.py:Name` and of every object in a recipe: the same recipe with an edited file is another run."""
    if isinstance(tree, dict | list):
        items = tree.values() if isinstance(tree, dict) else tree
        return {name: digest for item in items for name, digest in fingerprint_plugins(item).items()}
    if isinstance(tree, Given):
        return {tree: tree.digest}
    file = Path(tree.rpartition(":")[0]).expanduser() if isinstance(tree, str) else Path()
    if file.suffix != ".py" or not file.is_file():
        return {}
    return {str(tree): hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()}


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
