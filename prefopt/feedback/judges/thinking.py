"""What a model thinks before it answers is no answer: it is cut off, however its family marks it."""

import re

TAGS = "(?:seed:)?(?:think|thinking|thought|reasoning|reason|reflection|analysis)"
PAIRS = (
    (f"<{TAGS}>", f"</{TAGS}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|begin_of_(?:thought|think)\|>", r"<\|end_of_(?:thought|think)\|>"),
    (r"<\|think_start\|>", r"<\|think_end\|>"),
    (r"<unused94>(?=\s*thought)", r"<unused95>"),
    (r"<\|channel>(?=\s*thought)", r"<channel\|>"),
)
"""How thinking begins and ends: Qwen3, DeepSeek-R1 and most others · Magistral · Kimi · Command A · MedGemma · Gemma 4."""

OPENS = re.compile("|".join(opening for opening, _ in PAIRS), re.IGNORECASE)
CLOSES = re.compile("|".join(closing for _, closing in PAIRS), re.IGNORECASE)

CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
"""The channels of gpt-oss: what counts is the last message on `final`."""
ENDS = re.compile(r"<\|(?:end|return|call|start)\|>.*", re.DOTALL)
LEAKED = re.compile(r"^\s*(?:assistant)?(?:analysis|commentary)(?=[^\W_])")
"""The same channels as a text whose special tokens were left out: `analysisIt is …assistantfinal8`."""
LEAKED_FINAL = "assistantfinal"


def after_thinking(text: str) -> str | None:
    """What was written after all thinking; None where the thinking did not come to its end.

    A closing mark without an opening one ends thinking that the prompt had begun.
    """
    channels = list(CHANNEL.finditer(text))
    if channels:
        last = channels[-1]
        return ENDS.sub("", text[last.end() :]) if last[1] == "final" else None
    if LEAKED.match(text):
        _, final, rest = text.rpartition(LEAKED_FINAL)
        return rest if final else None
    closings = list(CLOSES.finditer(text))
    rest = text[closings[-1].end() :] if closings else text
    return None if OPENS.search(rest) else rest


def is_thinking(text: str) -> bool:
    """Whether a text ends within thinking: what is written next is no answer yet."""
    return after_thinking(text) is None


def thinks_first(token: str) -> bool:
    """Whether an answer whose first token is this one begins with thinking."""
    word = token.strip().lower()
    return bool(OPENS.match(token.strip())) or word in (
        "<think",
        "<thinking",
        "<|channel|>",
        "[think",
        "◁think",
        "<|start_thinking|>",
    )
