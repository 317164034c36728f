"""Tasks of reasoning-gym as rows, and their scores; `prefopt.feedback.reasoning_gym` is the feedback. Imports next to nothing."""

import json
from functools import lru_cache
from typing import Any

from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.extras import extra


def tasks(
    dataset: str, size: int = 500, seed: int = 0, system: str | None = "default", **settings: Any
) -> list[dict[str, Any]]:
    """Rows for `source.data: prefopt.environments.reasoning_gym:tasks`, with `source.arguments: {dataset: leg_counting}`.

    Args:
        dataset: its name, such as `leg_counting`.
        size: number of rows.
        seed: of its questions.
        system: which of reasoning-gym's system prompts asks for the answer in tags; null makes the prompt the question alone.
        settings: others of the dataset.

    Raises:
        PrefoptError: no such dataset or system prompt; or reasoning-gym is not installed.
    """
    gym = extra("reasoning_gym", "agents", "reasoning_gym:tasks")
    known = list(gym.factory.DATASETS)
    if dataset not in known:
        raise PrefoptError(f"reasoning-gym has no dataset {dataset!r}.{nearest(dataset, known)}")
    prompts = gym.utils.SYSTEM_PROMPTS
    if system is not None and system not in prompts:
        raise PrefoptError(f"reasoning-gym has no system prompt {system!r}; it has {', '.join(prompts)}")
    rows = []
    for index, entry in enumerate(_made(dataset, json.dumps({"size": size, "seed": seed, **settings}, sort_keys=True))):
        messages = [{"role": "user", "content": entry["question"]}]
        if system is not None:
            messages = [{"role": "system", "content": prompts[system]}, *messages]
        task = {"dataset": dataset, "settings": {"size": size, "seed": seed, **settings}, "index": index}
        prompt = entry["question"] if system is None else messages
        rows.append({"prompt": prompt, "answer": entry["answer"], "task": json.dumps(task, sort_keys=True)})
    return rows


def score(task: str, text: str, tag: str | None) -> float:
    """What reasoning-gym gives for a completion, 0 to 1.

    Its scorers evaluate answers as Python (seen in 0.1.23 and 0.1.25, in `binary_matrix`, `n_queens`, `spiral_matrix` and
    `string_insertion`), so this belongs into a process that is confined.

    Args:
        task: the column of that name.
        text: the completion.
        tag: in which the answer is; None takes the whole text.
    """
    from reasoning_gym.utils import extract_answer

    which = json.loads(task)
    data = _made(which["dataset"], json.dumps(which["settings"], sort_keys=True))
    answer = text if tag is None else extract_answer(text, tag_name=tag)
    return float(data.score_answer(answer, data[which["index"]]))


@lru_cache(maxsize=64)
def _made(dataset: str, settings: str) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(dataset, **json.loads(settings))
