"""A question as what goes to a server."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.feedback.judges.question import Question
from prefopt.feedback.judges.texts import whole
from prefopt.feedback.judges.thinking import is_thinking
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


def text(
    question: Question, tokenizer: PreTrainedTokenizerBase | None, settings: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """One text, up to and with the beginning of the answer: as the tokenizer's chat template writes it, or line by line.

    Args:
        question: any.
        tokenizer: None for line by line.
        settings: what the template takes beside the turns.

    Raises:
        PrefoptError: the template does not take these turns, or begins the answer with thinking.
    """
    start = whole(question.start)
    if tokenizer is None:
        return "\n".join([*(whole(content) for _, content in question.turns), *([start] if start else [])])
    turns = [{"role": role, "content": whole(content)} for role, content in question.turns]
    written = rendered(turns, tokenizer, settings, "the chat template of server.template")
    refuse_thinking(written, question, "server.chat_template_kwargs")
    return _without_bos(written, tokenizer) + start


def rendered(
    turns: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], name: str
) -> str:
    """Turns as a chat template writes them, up to where the answer begins.

    Where it has no system turn, or leaves out what that says, the system's text goes before the first user's.

    Args:
        turns: a conversation.
        tokenizer: with the template.
        settings: what the template takes beside the turns.
        name: what messages call it.

    Raises:
        PrefoptError: it does not take these turns, or leaves out one of them.
    """
    wrong = ""
    for form in (turns, without_system(turns)):
        try:
            written = str(
                tokenizer.apply_chat_template(list(form), tokenize=False, add_generation_prompt=True, **settings)
            )
        except Exception as error:  # a template raises what it likes: some take no system turn
            wrong = wrong or str(error)
            continue
        lost = [turn["role"] for turn in form if turn["content"].strip() not in written]
        if not lost:
            return written
        wrong = wrong or f"it leaves out the turn of {lost[0]}"
    roles = ", ".join(turn["role"] for turn in turns)
    raise PrefoptError(
        f"{name} refuses turns of {roles}: {wrong}. Leave out the template (`template: false`, or for a server "
        "`endpoint: completions` without one), or list examples in the question, by `example` and {{ examples }}"
    )


def without_system(turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The same conversation with the system's text before the first user's."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return list(turns)
    return [turns[1] | {"content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def refuse_thinking(written: str, question: Question, key: str) -> None:
    """Refuse a template after which the model thinks, where labels or a given beginning are to be the answer itself.

    Raises:
        PrefoptError: says how to switch it off.
    """
    channels = written.rstrip().endswith(
        "<|start|>assistant"
    )  # gpt-oss, which then chooses the channel of its thoughts
    if (question.labels or question.start) and (channels or opens_thinking(written)):
        raise PrefoptError(
            "the judge's chat template begins the answer with thinking, so that what is read there is no verdict: switch it off "
            f"({key}: {{enable_thinking: false}}, where the template knows that), use `template: false`, or `mode: generative` "
            "with a rubric without `answer` and `verdict_tokens` enough for its thoughts"
        )


def opens_thinking(written: str) -> bool:
    """Whether a rendered prompt ends where the model thinks: in its last words, for other people's texts are before."""
    return is_thinking(written[-40:])


def unstarted(text: str, start: str) -> str:
    """What was written, without the beginning where it was repeated after all."""
    return text.lstrip().removeprefix(start.strip()) if start.strip() else text


def _without_bos(written: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the token of the beginning where the server's tokenizer, being the same, writes it itself."""
    bos: str = tokenizer.bos_token or ""
    adds: Sequence[int] = tokenizer("a")["input_ids"]
    return written.removeprefix(bos) if bos and adds[0] == tokenizer.bos_token_id else written
