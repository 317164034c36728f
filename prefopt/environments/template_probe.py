"""Whether a chat template can hold episodes, found with a few made-up turns before a model is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data import Tokenised
from prefopt.data.encoding import TextEncoder
from prefopt.environments.checking import Shown
from prefopt.environments.transcript import HELP, Conversation, NotKeptError, transcript
from prefopt.support.errors import PrefoptError
from prefopt.types import Message

THOUGHT = "<think>\n"

WORDS, THINKS = "are words alone", "think"

TURNS = {
    WORDS: "Here it is.",
    THINKS: f"{THOUGHT}Let me see.\n</think>\n\nHere it is.",
    "begin with a blank or a new line": "\n\n Here it is.",
    "end with a blank or a new line": "Here it is. \n",
}
"""Turns as policies write them, by what such turns do."""


def probe_template(row: Tokenised, shown: Shown, encoder: TextEncoder, name: str, max_turns: int) -> str:
    """Which turns that an environment has answered the chat template does not keep, and how; empty where it keeps all.

    Two turns of each kind follow the prompt of a row. Answers are messages of the user's, or, where there are tools, results.

    Args:
        row: of the data.
        shown: what the environment said and offered when it was checked.
        encoder: of the policy's tokenizer.
        name: what messages call the environment.
        max_turns: of an episode; the last has no answer.

    Raises:
        PrefoptError: nothing is kept, whatever the policy writes; or the prompt cannot begin an episode.
    """
    conversation = transcript(row, encoder, name)
    conversation.prompt(shown.opening, shown.tools)
    answered = min(2, max_turns - 1)
    if not isinstance(conversation, Conversation) or answered == 0:
        return ""
    answer = _answer(shown.tools)
    asked = conversation.rendered((), ask=True)
    begun = THOUGHT if asked.rstrip().endswith(THOUGHT.strip()) else ""
    broken: dict[str, str] = {}
    for kind, text in TURNS.items():
        own = text.removeprefix(begun)  # many templates begin a thought for the policy
        if WORDS in broken and kind != THINKS:
            continue  # with blanks around them or without
        if why := _broken(conversation, own, answer, answered):
            broken[kind] = f"{kind} ({why})"
    turns = f"turns that a {answer['role']} answers"
    if {WORDS, THINKS} <= set(broken):
        raise PrefoptError(
            f"{name}: the chat template does not keep {turns}, so that no episode can have two, neither of those that "
            f"{' nor of those that '.join(broken.values())}: {HELP}; where every episode is one turn, say `max_turns: 1`"
        )
    if not broken:
        return ""
    return (
        f"{name}: of {turns}, the chat template does not keep those that {', nor those that '.join(broken.values())}. "
        f"An episode with such a turn has no verdict: {HELP}"
    )


def _answer(tools: Sequence[Mapping[str, Any]]) -> Message:
    """What an environment says: a result of its first tool, or a text, which is the user's."""
    if not tools:
        return {"role": "user", "content": "A result."}
    function = tools[0].get("function", tools[0])
    return {"role": "tool", "name": str(function.get("name", "tool")), "content": "A result."}


def _broken(conversation: Conversation, text: str, answer: Message, answered: int) -> str:
    """What happens to a turn that is answered, and to a second one like it; empty where both are kept."""
    past: tuple[Message, ...] = ()
    for _ in range(answered):
        past = (*past, {"role": "assistant", "content": text})
        try:
            conversation.answer(past, "", (answer,))
        except NotKeptError as error:
            expected, rendered = error.texts
            return f"{expected!r} becomes {rendered!r}"
        except PrefoptError as error:
            return str(error)
        past = (*past, answer)
    return ""
