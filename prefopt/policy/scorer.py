"""The scorer: any Hugging Face sequence classifier with one output, as a reward model."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.policy.policy import save_weights
from prefopt.policy.rows.layout import Layout, padded
from prefopt.support.errors import PrefoptError
from prefopt.support.profile import counted
from prefopt.types import Batch, Needs, Outputs


class Scorer(nn.Module):
    """A reward model: `scorer(batch, needs)` gives `rewards` [B, K], 0 where a completion is absent.

    It reads prompt and completion as one sequence, tokenised by its own tokenizer. A decoder's reward is read at the last token of
    the row; a bidirectional encoder pools as its architecture does.

    Args:
        model: from `AutoModelForSequenceClassification`, with one label.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None = None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.train(model.training)  # a new module is in training mode, a loaded model is not

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """`rewards` [B, K] in fp32 (fp64 for a model in fp64).

        Raises:
            PrefoptError: `needs` asks for something that a scorer does not compute.
        """
        if needs.reference or needs.values or needs.statistics or not needs.rewards:
            raise PrefoptError("this objective needs a language model's log-probs; a scorer gives none")
        rows = padded(batch, self.device)
        counted(rows.tokens)
        scores = self._scores(rows)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        present = batch.present.to(self.device)
        rewards = scores.new_zeros(present.shape).masked_scatter(present, scores)
        return Outputs(mask=batch.mask.to(self.device), rewards=rewards)

    def _scores(self, rows: Layout) -> Tensor:
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        score = getattr(model, "score", None)
        if score is None or model.config.is_encoder_decoder:
            return self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, 0]
        # A decoder's own forward takes the last token that is not the padding token, and so the one before EOS wherever
        # padding and EOS share an id. `rows.last` is the true end of each row.
        backbone: Any = getattr(model, str(model.base_model_prefix))
        states = backbone(input_ids=rows.input_ids, use_cache=False).last_hidden_state
        return score(states[torch.arange(len(rows.last), device=states.device), rows.last])[:, 0]

    def save(self, folder: Path) -> None:
        """Weights (safetensors) and tokenizer, in the Hugging Face format."""
        save_weights(self.model, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
