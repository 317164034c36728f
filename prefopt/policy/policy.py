"""The policy: any Hugging Face causal LM behind one call, `policy(batch, needs) -> Outputs`."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.policy.compat import device_of
from prefopt.policy.critic import Critic, ValueHead
from prefopt.policy.head import DIVERGENCES, STATISTICS, Head, States, token_statistics
from prefopt.policy.rows.layout import padded, single_completions
from prefopt.policy.rows.prefix_sharing import PrefixSharing
from prefopt.policy.saving import save_generation_settings, save_weights
from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import reraise_out_of_memory
from prefopt.support.profile import counted
from prefopt.support.sending import placed, sent
from prefopt.types import Batch, Needs, Outputs

log = logging.getLogger(__name__)

CRITIC = "critic.safetensors"
"""Where a critic is saved, beside the weights of its policy."""


class Policy(nn.Module):
    """A causal language model, with or without a PEFT adapter.

    Log-probs are of the completion tokens given the prompt, divided by the temperature in `batch.columns["temperature"]`
    where there is one, and reduced in fp32 (fp64 for a model in fp64) whatever the model's own dtype.

    Args:
        model: a `transformers` causal LM or a `PeftModel` around one.
        tokenizer: its tokenizer; None for a model that is only ever given token ids.
        critic: computes values; None for objectives that need none.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        critic: ValueHead | Critic | None = None,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.critic = critic
        self._head: Head | None = None
        self._prefix_sharing = PrefixSharing()
        self._verified = False
        # In a tuple, so that it is no submodule: it is not trained, saved or synchronised.
        self._reference: tuple[Policy, ...] = ()
        self.train(model.training)  # a new module is in training mode, a loaded model is not

    @property
    def causal(self) -> PreTrainedModel:
        """The causal LM under the adapter."""
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self)

    @property
    def has_adapter(self) -> bool:
        """Whether there is an adapter."""
        return isinstance(self.model, PeftModel)

    def without_adapter(self) -> AbstractContextManager:
        """A context in which the adapter is switched off: the policy at step 0."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    def attach_reference(self, reference: "Policy") -> None:
        """Run this reference together with the policy where an objective needs an exact KL, which takes the logits of both."""
        self._reference = (reference,)

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """`logps` [B, K, T], and `values` and the statistics in `needs`; 0 outside the mask.

        Raises:
            PrefoptError: `needs` asks for something that a language model does not compute.
        """
        if needs.rewards:
            raise PrefoptError("this objective needs rewards, which a language model does not give: it is for scorers")
        if needs.values and self.critic is None:
            raise PrefoptError("this objective needs values; this policy has no value head or critic")
        if unknown := (needs.statistics | needs.watched) - STATISTICS.keys() - DIVERGENCES.keys():
            raise PrefoptError(f"unknown statistics {sorted(unknown)}; known: {sorted({*STATISTICS, *DIVERGENCES})}")
        tokens = sent(batch.completion_ids[batch.mask], self.device)
        states, features = self._states(batch, features=needs.values and isinstance(self.critic, ValueHead))
        reference = self._reference_states(batch) if (needs.statistics | needs.watched) & DIVERGENCES.keys() else None
        temperature = _per_token(batch, self.device)
        numbers = token_statistics(states, tokens, temperature, needs.statistics, reference, needs.watched)
        if needs.values:
            assert self.critic is not None
            numbers["values"] = self.critic(batch, features)
        fields = {name: placed(values, batch.mask) for name, values in numbers.items()}
        mask = sent(batch.mask, self.device)
        return Outputs(mask=mask, logps=fields.pop("logps"), values=fields.pop("values", None), statistics=fields)

    def _states(self, batch: Batch, features: bool = False) -> tuple[States, Tensor]:
        """What predicts the tokens, and the hidden states [M, H]; these only have to be right if `features` is True."""
        if not self._verified and batch.mask.any():
            self._verify(batch)
        if self._head is None:
            return self._states_by_own_head(batch, features)
        states = self._prefix_sharing(getattr(self.causal, self.causal.base_model_prefix), batch)
        return States(self._head, states, self._head.vocabulary), states

    def _states_by_own_head(self, batch: Batch, features: bool) -> tuple[States, Tensor]:
        """The same by the architecture's own head, on all positions of plain rows at once."""
        rows = padded(batch, self.device)
        counted(rows.tokens)
        output = self.model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, output_hidden_states=features
        )
        logits = rows.wanted(output.logits)
        hidden = rows.wanted(output.hidden_states[-1]) if features else logits
        return States(nn.Identity(), logits, logits.shape[-1]), hidden

    def _reference_states(self, batch: Batch) -> States:
        if not self._reference:
            raise PrefoptError("exact KL needs the reference's logits too: call `policy.attach_reference(reference)`")
        reference = self._reference[0]
        with torch.no_grad(), reference.without_adapter():
            return reference._states(batch)[0]

    @torch.no_grad()
    def _verify(self, batch: Batch) -> None:
        """Use the chunked head if its log-probs of two completions are those of the model itself, else the model's own head."""
        self._verified = True  # set first, because `_mismatch` calls `_states`
        # The first tokens suffice, because a head works on each position by itself; a completion may have none in its mask there.
        few = (single_completions(_beginnings(batch)) or single_completions(batch))[:2]
        training = self.training
        self.eval()  # anything random in training mode would make the two differ
        try:
            alone = [self._own_logps(one) for one in few]
            expected, largest = torch.cat([logps for logps, _ in alone]), max(size for _, size in alone)
            mismatch = self._mismatch(few, expected, largest)
        except BaseException:  # out of memory, or interrupted: nothing is known of the head
            self._verified, self._head = False, None
            raise
        finally:
            self.train(training)
        if mismatch:
            self._head = None
            log.warning(
                "%s makes its logits in a way prefopt does not know (%s): using its own LM head, which keeps "
                "[tokens × vocabulary] in memory",
                type(self.causal).__name__,
                mismatch,
            )

    def _own_logps(self, one: Batch) -> tuple[Tensor, float]:
        """The log-probs of one completion by the model's own forward, and the largest magnitude of its logits."""
        row = padded(one, self.device)
        logits = self.model(input_ids=row.input_ids, use_cache=False).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        following = one.completion_ids[one.mask].to(self.device)
        return logits.log_softmax(-1)[row.places].gather(-1, following[:, None])[:, 0], logits.abs().max().item()

    def _mismatch(self, few: Sequence[Batch], expected: Tensor, largest: float) -> str:
        """How the chunked head differs from the model's own on these completions, in words; "" if they agree."""
        try:
            self._head = Head(self.causal)
            parts = [
                token_statistics(self._states(one)[0], one.completion_ids[one.mask].to(self.device)) for one in few
            ]
            logps = torch.cat([part["logps"] for part in parts])
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # no such parts, or of another shape
            reraise_out_of_memory(error)
            return f"{type(error).__name__}: {error}"
        tolerance = 1e-4
        low = self._head.linear.weight.dtype not in (torch.float32, torch.float64)
        if low or torch.is_autocast_enabled(self.device.type):
            # Logits in bf16 are a multiple of 2⁻⁷ of their size, and the states behind them differ by rounding between code
            # paths; a missing scale or cap differs by more.
            tolerance = 2**-6 * max(largest, 1.0)
        worst = (expected - logps).abs().max().item()
        return "" if worst <= tolerance else f"log-probs differ by {worst:.2g}"

    def save(self, folder: Path) -> None:
        """Weights (safetensors; the adapter alone where there is one), tokenizer, generation settings: the Hugging Face format.

        A critic is saved beside them; a run that starts from this folder loads it again.
        """
        save_weights(self.model, folder)
        saved_adapter = (folder / "adapter_config.json").is_file()
        save_generation_settings(self.causal, self.tokenizer, folder, saved_adapter)
        if self.critic is not None:
            save_file(self.critic.state_dict(), folder / CRITIC)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def _beginnings(batch: Batch, tokens: int = 32) -> Batch:
    """The first tokens of each completion after the last ones of its prompt, and nothing else of the batch."""
    prompts = tuple(prompt[-tokens:] for prompt in batch.prompt_ids)
    return Batch(prompts, batch.completion_ids[..., :tokens], batch.mask[..., :tokens])


def _per_token(batch: Batch, device: torch.device) -> Tensor | None:
    """The temperature of each masked token, [M], or None where it is 1 throughout."""
    temperature = batch.columns.get("temperature")
    if temperature is None or bool((temperature == 1).all()):
        return None
    return sent(temperature[:, None, None].expand(batch.mask.shape)[batch.mask], device)
