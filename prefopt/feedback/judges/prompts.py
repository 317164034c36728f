"""A question as what goes to a server."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from prefopt.feedback.judges.question import Question
from prefopt.feedback.judges.texts import whole
from prefopt.support.errors import PrefoptError

GO_ON = "Go on from exactly there, without repeating it."
"""Asks a chat server, which cannot be given the beginning of its answer, to behave as if it had been."""


def messages(question: Question, ask: bool) -> list[dict[str, str]]:
    """The turns of a chat, the beginning of the answer last.

    Args:
        question: any.
        ask: for the rest of an answer that has begun, in a turn of its own; False leaves the begun answer last.
    """
    turns = [{"role": role, "content": whole(content)} for role, content in question.turns]
    if question.start:
        turns.append({"role": "assistant", "content": whole(question.start)})
        turns += [{"role": "user", "content": GO_ON}] * ask
    return turns


def text(question: Question, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """One text, up to and with the beginning of the answer: as the tokenizer's chat template writes it, or line by line.

    Raises:
        PrefoptError: the template does not take these turns.
    """
    start = whole(question.start)
    if tokenizer is None:
        return "\n".join([*(whole(content) for _, content in question.turns), *([start] if start else [])])
    turns = [{"role": role, "content": whole(content)} for role, content in question.turns]
    try:
        written = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template raises what it likes: some take no system turn
        roles = ", ".join(role for role, _ in question.turns)
        raise PrefoptError(f"the chat template of server.template refuses turns of {roles}: {error}") from error
    return _without_bos(written, tokenizer) + start


def unstarted(text: str, start: str) -> str:
    """What was written, without the beginning where it was repeated after all."""
    return text.lstrip().removeprefix(start.strip()) if start.strip() else text


def _without_bos(written: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the token of the beginning where the server's tokenizer, being the same, writes it itself."""
    bos: str = tokenizer.bos_token or ""
    adds: Sequence[int] = tokenizer("a")["input_ids"]
    return written.removeprefix(bos) if bos and adds[0] == tokenizer.bos_token_id else written
