"""Token ids of an episode in a plain text: of each message alone, as its writer has them."""

from collections.abc import Sequence
from typing import NamedTuple

from prefopt.data.example import Example
from prefopt.data.text_episodes import ASSISTANT, opening_of, roles_of
from prefopt.data.tokenised import Ids

Piece = tuple[Sequence[int], bool]
"""Ids of a message, and whether the policy wrote it."""


class EpisodeIds(NamedTuple):
    """Completions of one prompt, K of them.

    Attributes:
        opening: what the environment says before all of them, which the prompt ends with.
        ids: of each completion.
        masks: of each, which of its tokens the policy wrote.
        ends: of each, the places of the last tokens of the policy's turns.
    """

    opening: Ids
    ids: tuple[Ids, ...]
    masks: tuple[tuple[bool, ...], ...]
    ends: tuple[Ids, ...]


def episode_ids(
    example: Example, messages: Sequence[Sequence[int]], eos: int, with_eos: Sequence[bool], scored: bool
) -> EpisodeIds:
    """The ids of an episode's messages, one after another.

    Nothing merges across two messages: the policy draws its turn behind tokens that are there already, and what an environment says
    is tokenised once, as what follows.

    Args:
        example: K episodes in a plain text.
        messages: ids of all messages, those of the first completion first.
        eos: the token that ends a completion.
        with_eos: for each completion, whether it ends with exactly one.
        scored: the last turn ends before that EOS, where models that score steps read it; otherwise with it.
    """
    following = iter(messages)
    episodes: list[list[Piece]] = [
        [(next(following), role == ASSISTANT) for role in roles_of(completion)] for completion in example.completions
    ]
    opening = opening_of(example)
    joined = [
        _joined(pieces[opening:], eos if ends else None, scored)
        for pieces, ends in zip(episodes, with_eos, strict=True)
    ]
    ids, masks, ends = zip(*joined, strict=True)
    return EpisodeIds(tuple(token for piece, _ in episodes[0][:opening] for token in piece), ids, masks, ends)


def _joined(pieces: Sequence[Piece], eos: int | None, scored: bool) -> tuple[Ids, tuple[bool, ...], Ids]:
    """Ids, mask and ends of turns; nothing where the policy wrote nothing but EOS."""
    *earlier, (last, _) = pieces
    if eos is not None:
        own = len(last)
        while own and last[own - 1] == eos:
            own -= 1
        last = [*last[:own], eos] if own or earlier else []
    ids, mask, ends = list[int](), list[bool](), list[int]()
    for piece, by_policy in (*earlier, (last, True)):
        ids += piece
        mask += [by_policy] * len(piece)
        if by_policy and ids:
            ends.append(len(ids) - 1)
    if scored and eos is not None and len(last) > 1:
        ends[-1] -= 1
    return tuple(ids), tuple(mask), tuple(ends)
