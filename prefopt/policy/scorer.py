"""The scorer: any Hugging Face sequence classifier with one output, as a reward model; and the mark of those that are saved."""

import json
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from prefopt.policy.compat import device_of
from prefopt.policy.rows.layout import padded
from prefopt.policy.rows.prefix_sharing import PrefixSharing
from prefopt.policy.saving import save_weights
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given
from prefopt.support.profile import counted
from prefopt.support.sending import placed, sent
from prefopt.types import Batch, Needs, Outputs, StepRewards

FILE = "reward_model.json"
"""The mark that a reward model which prefopt saved carries, beside its weights."""


@dataclass(frozen=True)
class Reading:
    """How a reward model that prefopt trained reads: the prompt, the completion and one EOS, without what a template adds later.

    Attributes:
        max_prompt_tokens: longer prompts lost their beginning; None for any length.
        max_completion_tokens: longer completions lost their end.
        skips_padding: whether the reward is read at the last token that is not the padding token, as transformers does, so
            before EOS where padding is EOS; otherwise at the last token, as before prefopt 0.2.
        steps: of a scorer of steps, what it gives at the end of each: its "reward", or the "logit" of its being right; None of one
            that reads completions as a whole.
        separator: what followed each step of the texts that it was trained on; None where steps were turns.
    """

    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    skips_padding: bool = True
    steps: StepRewards | None = None
    separator: str | None = None

    def save(self, folder: Path) -> None:
        """Write the mark."""
        (folder / FILE).write_text(json.dumps({"trained_by": "prefopt", **asdict(self)}, indent=1) + "\n")


def reading_of(name: str) -> Reading | None:
    """How prefopt trained the reward model of this name, a folder or a hub id, to read; None for models from elsewhere.

    Raises:
        PrefoptError: its mark is damaged.
    """
    if isinstance(name, Given):
        return None
    file = Path(name) / FILE if Path(name).is_dir() else _on_hub(name)
    if file is None or not file.is_file():
        return _of_an_old_run(Path(name))
    try:
        content = json.loads(file.read_text())
        return Reading(**{key: value for key, value in content.items() if key != "trained_by"})
    except (ValueError, TypeError, AttributeError) as error:
        raise PrefoptError(
            f"{file} is damaged ({error}): it says how prefopt trained this reward model to read; copy it from the run that "
            "trained the model, or delete it to read texts as transformers does"
        ) from error


def _on_hub(name: str) -> Path | None:
    flags = ("missing_entries", "connection_errors", "gated_repo")
    found = cached_file(name, FILE, **{f"_raise_exceptions_for_{flag}": False for flag in flags})
    return Path(found) if found else None


def _of_an_old_run(folder: Path) -> Reading | None:
    """Of a run folder that was written before the mark was."""
    recipe, manifest = (folder.parent / name for name in ("recipe.yaml", "manifest.json"))
    if folder.name != "policy" or not (recipe.is_file() and manifest.is_file()):
        return None
    try:
        source = yaml.safe_load(recipe.read_text())["source"]
        lengths = [int(source.get(name, 512)) for name in ("max_prompt_tokens", "max_completion_tokens")]
    except (yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError):
        lengths = [512, 512]
    return Reading(lengths[0], lengths[1], skips_padding=False)


class Scorer(nn.Module):
    """A reward model: `scorer(batch, needs)` gives `rewards` [B, K], 0 where a completion is absent.

    A scorer of steps (`Reading.steps`) gives `step_rewards` [B, K, T] besides, at every token of the mask, which it has read.
    `rewards` are then their sums over `batch.step_ends`: of rewards, or of log σ of the logits, log P(all steps are right).

    It reads prompt and completion as one sequence, tokenised by its own tokenizer. A decoder's reward is read where transformers
    reads it: at the last token that is not the padding token, so before EOS in a model whose padding is EOS. A bidirectional
    encoder pools as its architecture does.

    Args:
        model: from `AutoModelForSequenceClassification`, with one label.
        tokenizer: its tokenizer.
        reading: how it is trained to read, which is saved with it.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reading: Reading = Reading(),
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.reading = reading
        self._prefix_sharing = PrefixSharing("ending" if reading.steps is None else "reading")
        self.train(model.training)  # a new module is in training mode, a loaded model is not

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self)

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """`rewards` [B, K] in fp32 (fp64 for a model in fp64).

        Raises:
            PrefoptError: `needs` asks for something that a scorer does not compute.
        """
        if needs.reference or needs.values or needs.statistics or not needs.rewards:
            raise PrefoptError("this objective needs a language model's log-probs; a scorer gives none")
        if self.reading.steps is not None:
            return self._of_steps(batch)
        scores = _exact(self._scores(batch))
        return Outputs(mask=sent(batch.mask, self.device), rewards=placed(scores, batch.present))

    def _of_steps(self, batch: Batch) -> Outputs:
        """The head's number at every token of the mask, and their sums over steps."""
        model = self._classifier
        if not reads_steps(model):
            raise PrefoptError(
                f"{type(model).__name__} is no decoder, so it gives no number for each token: see `Needs.step_rewards`"
            )
        numbers = _exact(model.score(self._states(model, batch))[:, 0])
        mask, steps = sent(batch.mask, self.device), placed(numbers, batch.mask)
        summed = logsigmoid(steps) if self.reading.steps == "logit" else steps
        rewards = summed.masked_fill(~sent(batch.step_ends, self.device), 0).sum(-1)
        return Outputs(mask=mask, rewards=rewards, step_rewards=steps)

    @property
    def _classifier(self) -> Any:
        """The model under the adapter."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _states(self, model: Any, batch: Batch) -> Tensor:
        """[M, H], of a decoder: at each token of the mask, or at the end of each completion."""
        self._prefix_sharing.padding = (
            model.config.get_text_config().pad_token_id if self.reading.skips_padding else None
        )
        return self._prefix_sharing(getattr(model, str(model.base_model_prefix)), batch)

    def _scores(self, batch: Batch) -> Tensor:
        """[C], one for each completion."""
        model = self._classifier
        if reads_steps(model):
            # The same as a decoder's own forward, which finds the end of a row by the padding token, and refuses several rows
            # where it has none. Layouts know the true end.
            scores: Tensor = model.score(self._states(model, batch))[:, 0]
            return scores
        rows = padded(batch, self.device, None, "ending")
        counted(rows.tokens)
        padding = model.config.get_text_config().pad_token_id or 0
        ids = rows.input_ids.masked_fill(rows.attention_mask == 0, padding)
        return self.model(input_ids=ids, attention_mask=rows.attention_mask).logits[:, 0]

    def save(self, folder: Path) -> None:
        """Weights (safetensors) and tokenizer, in the Hugging Face format, and how it was trained to read.

        transformers' pipeline then gives the reward itself, and no sigmoid of it. Where the model has no padding token, and its
        tokenizer has a special token that is not EOS, that becomes the padding token of both: transformers reads several rows
        only with one.
        """
        tokenizer, text = self.tokenizer, self.model.config.get_text_config()
        self.model.config.problem_type = "regression"
        padding = text.pad_token_id
        if not isinstance(self.model, PeftModel) and tokenizer is not None and padding is None:
            tokenizer = deepcopy(tokenizer)
            tokenizer.pad_token = _padding(tokenizer)
            text.pad_token_id = tokenizer.pad_token_id
        save_weights(self.model, folder)
        text.pad_token_id = padding  # training goes on after a checkpoint, and reads as before
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        self.reading.save(folder)


def reads_steps(model: Any) -> bool:
    """Whether a classifier has a head on a decoder's states, so that it can give a number for each token that it has read."""
    return getattr(model, "score", None) is not None and not model.config.is_encoder_decoder


def _exact(values: Tensor) -> Tensor:
    """At least fp32."""
    return values if values.dtype == torch.float64 else values.float()


def _padding(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token with which no row ends, so that reading before padding is reading at the end."""
    ends = {tokenizer.eos_token, tokenizer.sep_token if tokenizer.eos_token is None else None}
    known = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens)
    return next((str(token) for token in known if token is not None and token not in ends), None)
