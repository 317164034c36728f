"""The policy: any Hugging Face causal LM behind one call, `policy(batch, needs) -> Outputs`."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import PrefoptError
from prefopt.policy.head import STATISTICS, Head, token_statistics
from prefopt.policy.layout import Rows, plain_rows
from prefopt.types import Batch, Needs, Outputs

log = logging.getLogger(__name__)


class Policy(nn.Module):
    """A causal language model, with or without a PEFT adapter.

    Log-probs are of the completion tokens given the prompt, divided by the temperature in `batch.columns["temperature"]`
    where there is one, and reduced in fp32 (fp64 for a model in fp64) whatever the model's own dtype.

    Args:
        model: a `transformers` causal LM or a `PeftModel` around one.
        tokenizer: its tokenizer; None for a model that is only ever given token ids.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None = None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._head: Head | None = None
        self._verified = False

    @property
    def causal(self) -> PreTrainedModel:
        """The causal LM under the adapter."""
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def has_adapter(self) -> bool:
        """Whether there is an adapter to switch off."""
        return isinstance(self.model, PeftModel)

    def without_adapter(self) -> AbstractContextManager:
        """A context in which the adapter is switched off: the policy at step 0."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """`logps` [B, K, T], and the statistics in `needs`; 0 outside the mask.

        Raises:
            PrefoptError: `needs` asks for what a language model cannot say.
        """
        if needs.rewards:
            raise PrefoptError("this objective needs rewards; a language model gives none. Set `policy.kind: scorer`")
        if unknown := needs.statistics - STATISTICS.keys():
            raise PrefoptError(f"unknown statistics {sorted(unknown)}; known: {sorted(STATISTICS)}")
        rows = plain_rows(batch, self.device)
        tokens = batch.completion_ids.to(self.device)[batch.mask.to(self.device)]
        temperature = _per_token(batch, self.device)
        if not self._verified:
            self._verify(rows, tokens)
        hidden, logits = self._hidden(rows)
        found = token_statistics(logits, hidden, tokens, temperature, needs.statistics, self._vocabulary)
        mask = batch.mask.to(self.device)
        placed = {name: values.new_zeros(mask.shape).masked_scatter(mask, values) for name, values in found.items()}
        return Outputs(mask=mask, logps=placed.pop("logps"), statistics=placed)

    def _hidden(self, rows: Rows) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """States [M, ·] at the predicting positions, and the function from them to logits."""
        if self._head is None:  # the architecture's own head, all positions of the row batch at once
            return self._own_logits(rows), nn.Identity()
        backbone = getattr(self.causal, self.causal.base_model_prefix)
        # Right padding is invisible to a causal model; without a mask, attention takes its fast causal path.
        states = backbone(input_ids=rows.input_ids, use_cache=False).last_hidden_state
        return states[rows.predicts], self._head

    def _own_logits(self, rows: Rows) -> Tensor:
        output = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        return output.logits[rows.predicts]

    @property
    def _vocabulary(self) -> int:
        return self.causal.get_output_embeddings().weight.shape[0]

    @torch.no_grad()
    def _verify(self, rows: Rows, tokens: Tensor) -> None:
        """Use the chunked head if it says what the model itself says about the first rows, else the model's own."""
        self._verified = True
        few = Rows(*(field[:2] for field in (rows.input_ids, rows.attention_mask, rows.predicts, rows.last)))
        tokens = tokens[: int(few.predicts.sum())]
        expected = token_statistics(nn.Identity(), self._own_logits(few), tokens, vocabulary=self._vocabulary)["logps"]
        self._head = Head(self.causal)
        hidden, logits = self._hidden(few)
        found = token_statistics(logits, hidden, tokens, vocabulary=self._vocabulary)["logps"]
        # bf16 activations differ by rounding between code paths; a missing scale or cap differs by far more.
        tolerance = 1e-4 if hidden.dtype in (torch.float32, torch.float64) else 5e-2
        worst = (expected - found).abs().max().item() if len(tokens) else 0.0
        if not worst <= tolerance:
            self._head = None
            log.warning(
                "%s transforms its logits in a way prefopt does not know (log-probs differ by %.2g): using its own LM head, "
                "which keeps [tokens × vocabulary] in memory",
                type(self.causal).__name__,
                worst,
            )

    def save(self, folder: Path) -> None:
        """Weights (safetensors; the adapter alone where there is one) and tokenizer, in the Hugging Face format."""
        self.model.save_pretrained(str(folder))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def _per_token(batch: Batch, device: torch.device) -> Tensor | None:
    """The temperature of each masked token, [M], or None where it is 1 throughout."""
    temperature = batch.columns.get("temperature")
    if temperature is None or bool((temperature == 1).all()):
        return None
    return temperature[:, None, None].expand(batch.mask.shape).to(device)[batch.mask.to(device)]
