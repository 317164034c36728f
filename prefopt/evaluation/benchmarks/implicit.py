"""A language model as a reward model: what its log-probabilities say of an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from prefopt.data import Example, collate, tokenise
from prefopt.policy import Policy
from prefopt.policy.parallel import forward
from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import advising
from prefopt.types import Completion, Model, Needs, Prompt, Verdict

Kind = Literal["logratio", "logp", "mean_logp", "norm_logp"]

OF_TOKENS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "logratio": lambda logps: logps.sum(-1),
    "logp": lambda logps: logps.sum(-1),
    "mean_logp": lambda logps: logps.sum(-1),  # divided by the length
    "norm_logp": lambda logps: -logps.norm(dim=-1),
}


@dataclass(frozen=True)
class ImplicitReward:
    """r(x, y) of a language model, in nats.

    logratio:   Σ_t log π(y_t) − log π_ref(y_t), which β times is DPO's reward (Rafailov et al., arXiv 2305.18290, eq. 5)
    logp:       Σ_t log π(y_t)
    mean_logp:  Σ_t log π(y_t) / |y|, which β times is SimPO's reward (Meng et al., arXiv 2405.14734, eq. 3)
    norm_logp:  −√Σ_t log² π(y_t)

    The last three need no reference; rewardbench 0.1.4 calls them sum, avg and norm. β is left out: it changes no score.

    It reads prompt and answer as training does, with one EOS at the end. Longer prompts lose their beginning, longer answers their
    end; a prompt's note says how many of its answers were `cut`. An empty answer has no verdict.

    Attributes:
        policy: the model.
        reference: what it is compared with; None where `kind` needs none.
        kind: which reward.
        max_prompt_tokens: None for any length.
        max_completion_tokens: likewise.
        batch_size: answers in one forward pass of a process; memory and speed only.
        accelerator: knows the device and the processes.
    """

    policy: Policy
    reference: Model | None
    kind: Kind
    max_prompt_tokens: int | None
    max_completion_tokens: int | None
    batch_size: int
    accelerator: Accelerator = field(repr=False, compare=False)
    collective: ClassVar[bool] = True

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K], on the CPU.

        Raises:
            PrefoptError: the tokenizer has no chat template for a conversation.
        """
        assert self.policy.tokenizer is not None
        places = [(b, k) for b, texts in enumerate(completions) for k in range(len(texts))]
        examples = [_example(prompts[b], completions[b][k], rows[b]) for b, k in places]
        read, _ = tokenise(examples, self.policy.tokenizer, self.max_prompt_tokens, self.max_completion_tokens)
        scores = torch.full((len(prompts), max(map(len, completions), default=0)), torch.nan, dtype=torch.float64)
        notes: list[dict[str, int]] = [{} for _ in prompts]
        for row in read:
            if row.prompt_cut or row.completions_cut[0]:
                note = notes[places[row.row][0]]
                note["cut"] = note.get("cut", 0) + 1
        if read:
            b, k = torch.tensor([places[row.row] for row in read]).T
            scores[b, k] = self._rewards(read)
        return Verdict(scores, notes=notes)

    def _rewards(self, read: Sequence[Any]) -> Tensor:
        """[N] of N rows with one completion each."""
        batch = collate(read)
        with advising("the benchmark", ("--batch-size", "max_prompt_tokens", "max_completion_tokens")):
            outputs = forward(self.policy, batch, Needs(), self.batch_size, self.accelerator)
            assert outputs.logps is not None
            logps = outputs.logps
            if self.kind == "logratio":
                if self.reference is None:
                    raise PrefoptError("the reward `logratio` compares with a reference, and there is none")
                other = forward(self.reference, batch, Needs(), self.batch_size, self.accelerator)
                assert other.logps is not None
                logps = logps - other.logps
        rewards = OF_TOKENS[self.kind](logps.double().cpu()[:, 0])
        return rewards / batch.mask[:, 0].sum(-1).cpu() if self.kind == "mean_logp" else rewards


def _example(prompt: Prompt, answer: Completion, row: Mapping[str, Any]) -> Example:
    """One answer as data have it: text after text, a turn of the assistant after a conversation."""
    columns = {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}
    if isinstance(prompt, str):
        return Example(prompt, (answer if isinstance(answer, str) else tuple(answer),), columns=columns)
    turns = ({"role": "assistant", "content": answer},) if isinstance(answer, str) else tuple(answer)
    return Example(tuple(prompt), (turns if answer else (),), columns=columns)
