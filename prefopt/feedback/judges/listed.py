"""From a server's lists of the likeliest tokens to likelihoods of whole labels."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Look = Callable[[str], Mapping[str, float]]
"""The likeliest next tokens, as texts with their log-probs, after so much of the answer."""


@dataclass(frozen=True)
class _Path:
    """Tokens that may become a label.

    Attributes:
        text: of them together.
        logp: of them together.
        towards: the labels that they may become.
        counted: labels for which this path was counted where one of its tokens ended a label; what follows is in that already.
    """

    text: str
    logp: float
    towards: tuple[str, ...]
    counted: frozenset[str] = frozenset()


def label_logps(labels: Sequence[str], look: Look) -> tuple[float, ...]:
    """For each label, the log-likelihood that the answer starts with the whole of it; −inf where no list has it.

    A label that is a token of its own has that token's. One that is not listed, of which a beginning is, is followed along the
    longest listed beginning: log p("1") + log p("0" | "1"). A label that begins another one holds it, whether it is a token of the
    other or not, as `Answer.logps` says. Only lists are read, so what no list has counts for nothing.

    Args:
        labels: any texts.
        look: called with "", and with every beginning that is followed.
    """
    logps_of: dict[str, list[float]] = {label: [] for label in labels}
    paths = [_Path("", 0.0, tuple(logps_of))]
    while paths:
        path = paths.pop()
        listed = {path.text + token: path.logp + logp for token, logp in look(path.text).items() if token}
        for label in path.towards:
            for held in logps_of:
                if label in listed and label.startswith(held) and held not in path.counted:
                    logps_of[held].append(listed[label])
        for text, towards in beginnings(path.towards, listed).items():
            counted = {label for label in logps_of if text in path.towards and text.startswith(label)}
            paths.append(_Path(text, listed[text], towards, path.counted | counted))
    return tuple(_log_sum(logps_of[label]) for label in labels)


def beginnings(labels: Sequence[str], listed: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """The longest listed beginning of each label that is not listed itself, with the labels that it may become."""
    towards: dict[str, tuple[str, ...]] = {}
    for label in labels:
        begun = [text for text in listed if label.startswith(text)]
        if begun and label not in listed:
            longest = max(begun, key=len)
            towards[longest] = (*towards.get(longest, ()), label)
    return towards


def _log_sum(logps: Sequence[float]) -> float:
    """log Σ exp, −inf of nothing."""
    most = max(logps, default=-math.inf)
    return most if most == -math.inf else most + math.log(sum(math.exp(logp - most) for logp in logps))


def merged(listed: Iterable[tuple[str, float]]) -> dict[str, float]:
    """A list as a dictionary; tokens of one text count together."""
    logps: dict[str, list[float]] = {}
    for token, logp in listed:
        logps.setdefault(token, []).append(logp)
    return {token: _log_sum(same) for token, same in logps.items()}
