"""How a batch of prompts × completions becomes rows of tokens for a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.types import Batch


@dataclass(frozen=True)
class Rows:
    """N rows of tokens, right-padded to length L.

    Attributes:
        input_ids: [N, L] int64.
        attention_mask: [N, L] int64; 1 on tokens, 0 on padding.
        predicts: [N, L] bool; True where the hidden state predicts a token of `batch.mask`. Read row by row, these positions
            come in the order of the True entries of the mask.
        last: [N] int64, the position of each row's last token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor
    last: Tensor

    def tokens(self) -> tuple[int, int]:
        """Tokens, and the same with padding."""
        return int(self.attention_mask.sum()), self.attention_mask.numel()


def plain_rows(batch: Batch, device: torch.device) -> Rows:
    """One row `prompt | completion` for each completion that is present; never none.

    Padding is on the right, so a causal model never sees it, and positions count from the prompt's first token whatever the
    padding. The id of the padding is 0: it is masked, and no model needs to have one of its own.

    Raises:
        ValueError: a prompt without tokens: nothing would predict the first token of its completions.
    """
    ids, masks = batch.completion_ids.tolist(), batch.mask.tolist()
    sequences: list[list[int]] = []
    predicts: list[list[bool]] = []
    for prompt, completions, written in zip(batch.prompt_ids, ids, masks, strict=True):
        if not prompt:
            raise ValueError("a prompt without tokens; begin it with the tokenizer's BOS or EOS token")
        for tokens, mask in zip(completions, written, strict=True):
            if not any(mask):
                continue
            length = len(mask) - mask[::-1].index(True)
            sequences.append([*prompt, *tokens[:length]])
            predicts.append([False] * (len(prompt) - 1) + mask[:length] + [False])
    if (
        not sequences
    ):  # a micro-batch of absent completions: most models cannot read no rows, so one that predicts nothing
        sequences, predicts = [[0]], [[False]]
    longest = max(len(s) for s in sequences)
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.long)
    padded = torch.zeros(len(sequences), longest, dtype=torch.long)
    chosen = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (sequence, flags) in enumerate(zip(sequences, predicts, strict=True)):
        padded[row, : len(sequence)] = torch.tensor(sequence)
        chosen[row, : len(flags)] = torch.tensor(flags)
    attention = (torch.arange(longest) < lengths[:, None]).long()
    return Rows(padded.to(device), attention.to(device), chosen.to(device), (lengths - 1).to(device))
