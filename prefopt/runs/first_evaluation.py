"""The evaluation before training: runs of a study that start from the same share it, whichever process and whenever it was made."""

import json
import os

import torch

from prefopt.evaluation.evaluation import Evaluation
from prefopt.feedback import judge_records
from prefopt.policy import Policy, Scorer
from prefopt.policy.configuration import configuration
from prefopt.runs.folder import RunFolder
from prefopt.runs.manifest import fingerprint_plugins, versions
from prefopt.runs.preparing import Prepared
from prefopt.support.dates import current_date
from prefopt.support.fingerprints import fingerprint_code, fingerprint_texts, fingerprint_weights
from prefopt.support.sharing import files_folder, shared, shared_text, stamp
from prefopt.support.threads import threads_of_phases
from prefopt.training.environment import ARITHMETIC, given

KIND = "evaluations"


def first_evaluation(prepared: Prepared, part: str, model: Policy | Scorer, folder: RunFolder) -> Evaluation:
    """Of the model before training: measured, or that of another run of the study in which the very same was measured.

    A manifest says in `shared` which run measured it.

    Args:
        prepared: the run.
        part: of the data.
        model: before its first step.
        folder: of the run.
    """
    key, root = _key(prepared, part, model), files_folder()
    name = os.path.relpath(folder.path, root.parent) if root is not None else str(folder)

    def measured() -> str:
        return json.dumps({"measured_by": name, "evaluation": prepared.evaluators[part](model).to_json()})

    # Processes of one run measure together, so none of them may find a file that another does not.
    alone = prepared.accelerator.num_processes == 1
    text = shared(KIND, key, lambda: shared_text(KIND, key, measured, _is_whole) if alone else measured())
    content = json.loads(text)
    if content["measured_by"] != name and prepared.accelerator.is_main_process:
        begun = folder.manifest()
        of_parts = {**begun.get("shared", {}), part: content["measured_by"]}
        folder.write_manifest(begun | {"shared": of_parts})
    return Evaluation.from_json(content["evaluation"])


def _is_whole(text: str) -> bool:
    """Whether a file holds what `first_evaluation` writes."""
    try:
        content = json.loads(text)
        Evaluation.from_json(content["evaluation"])
        return isinstance(content["measured_by"], str)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _key(prepared: Prepared, part: str, model: Policy | Scorer) -> str:
    """A hash of everything that is measured, by what and how: whatever is missing here would have runs say each other's numbers."""
    settings, evaluator = prepared.recipe, prepared.evaluators[part]
    # Feedback that is learnt from matters where it measures, too. The critic has no say in what is measured.
    scored = "reward" in evaluator.metrics.feedbacks
    others = {name: one for name, one in prepared.others.items() if scored or name.split(":")[0] != "scores"}
    models = {"model": model.model, **others, **prepared.measuring}
    judging = [*prepared.judging.values(), *(prepared.feedbacks.values() if scored else ())]
    included = {"policy", "reference", "evaluate", *["feedback"] * scored}
    tokenizer = prepared.models.tokenizer.name_or_path
    device = prepared.accelerator.device.type
    what = {
        "part": part,
        "kind": type(model).__name__,
        "weights": {name: fingerprint_weights(one) for name, one in models.items()},
        "configurations": {name: configuration(one) for name, one in models.items()},
        "compared": prepared.models.start is not None,
        "sections": settings.model_dump_json(include=included),
        "plugins": fingerprint_plugins({key: tree for key, tree in settings.to_tree().items() if key in included}),
        "judges": [record for one in judging for record in judge_records(one)],
        "against": None if evaluator.contest is None else fingerprint_texts(map(repr, [evaluator.contest.others])),
        "tokenizer": stamp(tokenizer),
        "date": current_date().isoformat(),
        "seed": settings.seed_of("evaluation"),
        "rows": [fingerprint_texts(map(repr, rows)) for rows in (evaluator.rows, evaluator.prompts)],
        "arithmetic": [settings.train.precision, str(threads_of_phases()), prepared.accelerator.num_processes],
        "device": [
            device,
            torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability(),
        ],
        "environment": [torch.get_float32_matmul_precision(), given(ARITHMETIC)],
        "versions": versions(),
        "code": fingerprint_code(),
    }
    return fingerprint_texts([json.dumps(what, sort_keys=True, default=repr)])
