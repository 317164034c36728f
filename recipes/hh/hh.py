"""Anthropic/hh-rlhf, whose rows are two whole dialogues as text."""

from collections.abc import Mapping

ASSISTANT = "\n\nAssistant:"
"""What comes before each turn of the assistant."""


def pair(row: Mapping[str, str]) -> dict[str, str] | None:
    """Prompt and two answers: the prompt is all up to the last `Assistant:` of the chosen dialogue, included.

    A pair whose rejected dialogue begins otherwise does not compare two answers to one prompt, and is left out, as is one
    without an answer. (Cutting both at the common beginning of their characters would give the words that two answers share to
    the prompt.)

    Source: the prompt is that of eric-mitchell/direct-preference-optimization, preference_datasets.py, which keeps those pairs.
    """
    before, mark, _ = row["chosen"].rpartition(ASSISTANT)
    prompt = before + mark
    chosen = row["chosen"].removeprefix(prompt)
    if not mark or not row["rejected"].startswith(prompt):
        return None
    rejected = row["rejected"].removeprefix(prompt)
    if not chosen.strip() or not rejected.strip() or ASSISTANT in rejected:
        return None
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
