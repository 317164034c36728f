"""One example as the model sees it, for people."""

from typing import TYPE_CHECKING

from rich.text import Text

from prefopt.data.texts import decode_everything
from prefopt.data.tokenised import Ids, Tokenised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def preview(row: Tokenised, tokenizer: "PreTrainedTokenizerBase") -> Text:
    """One example as the model sees it; what the loss counts is green, and between ⟦ and ⟧ where there is no colour."""
    text = Text()
    text.append("prompt", style="bold").append(f" ({len(row.prompt_ids)} tokens{', cut' * row.prompt_cut})\n")
    text.append(decode_everything(tokenizer, row.prompt_ids) + "\n", style="dim")
    for k, ids in enumerate(row.completion_ids):
        cut = ", cut" * bool(row.completions_cut and row.completions_cut[k])
        score = "" if row.scores is None else f", score {row.scores[k]:g}"
        text.append(f"completion {k + 1}", style="bold").append(f" ({len(ids)} tokens{cut}{score})\n")
        for written, run in _runs(ids, row.masks[k] if row.masks else (True,) * len(ids)):
            shown = decode_everything(tokenizer, run)
            text.append(f"⟦{shown}⟧" if written else shown, style="green" if written else "dim")
        text.append("\n")
    return text


def _runs(ids: Ids, mask: tuple[bool, ...]) -> list[tuple[bool, list[int]]]:
    """Neighbouring tokens with the same mask."""
    runs: list[tuple[bool, list[int]]] = []
    for token, written in zip(ids, mask, strict=True):
        if not runs or runs[-1][0] != written:
            runs.append((written, []))
        runs[-1][1].append(token)
    return runs
