"""Feedback from a trained reward model."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data import Example, Tokenised, collate, tokenise
from prefopt.data.encoding import unknown_token
from prefopt.data.steps import LINE_BREAK, in_steps
from prefopt.data.text_episodes import is_text_episode
from prefopt.environments.episodes import MESSAGES
from prefopt.feedback.calling import refuse_alone
from prefopt.feedback.rendering import Rendering, control_tokens, without_control
from prefopt.policy import Reading, Scorer, find_model, find_scorer, load_scorer, load_tokenizer, reading_of
from prefopt.policy.parallel import forward
from prefopt.policy.positions import positions_of
from prefopt.policy.step_labels import READING, labels_steps
from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import advising
from prefopt.types import Batch, Completion, Message, Needs, Outputs, Prompt, StepRewards, Verdict

Count = Annotated[int, Field(gt=0)]

EPISODE = "an episode that is text"
"""Column of examples that says so."""


@dataclass(frozen=True)
class RewardModel:
    """r(x, y) of a sequence classifier with one output, [B, K]: a folder, a hub id, or the run that trained it.

    It reads texts with its own tokenizer. A model that prefopt trained reads them as in its training: prompt and completion
    together, one EOS at the end, and its lengths. Every other model reads what transformers would give it: a conversation as its
    template writes it, to the template's last token; a text with EOS at its end, as TRL's RewardTrainer trains, or a bare one
    (`prompt: false`) as the tokenizer gives it. A decoder's reward is read at the last token that is not the padding token.

    A sampled completion that did not come to its end is read as if it had; `MissingEOS` tells the two apart. An empty completion,
    or one in which its tokenizer finds nothing, has no verdict (NaN); it is never scored 0. Tokens that end a turn or a text,
    spelt out within a completion, get a space inside. A prompt's note counts its completions that are `empty` and those of which
    only a part was read (`cut`), and such tokens (`control`).

    Every process calls it with the whole batch, scores its share, and has the whole verdict.

    A model that was trained here on steps or segments gives `steps`, a number for each turn: the sum of its steps' rewards, or,
    where it learnt labels, the probability Π σ(z) that all of them are right; 0 for a turn of which nothing was read. Its scores
    are then 0, or NaN for no verdict, as steps come on top of them. The steps of a text are what ends in the separator of its
    training data; a turn of a conversation is one step, and so is a turn of an episode that is text, whose turns are in the row's
    column `messages`. What an environment says behind the last turn is not read.

    So does a decoder of two labels for each token, wrong (0) and right (1), as TRL's former PRMTrainer trains: σ(z) is then the
    softmax of both at the line break behind each step. It reads texts, and episodes that are text whose turns end there.

    With `average` it is a model whose weights are the mean over several checkpoints (WARM): in place of an ensemble, at the
    cost of one. All must have been fine-tuned from the same model, and a head that starts at random is part of that start: train
    them with one `seeds.init`.

    Source: averaging: Ramé et al., arXiv 2401.12187.

    Attributes:
        model: folder, run folder or hub id; of several, the first that is on disk.
        average: more checkpoints, whose weights are averaged with those of `model`, all alike.
        tokenizer: folder or hub id; None is the model's own.
        prompt: whether it reads the prompt; otherwise the bare completion, for models of single texts.
        max_prompt_tokens: longer prompts lose their beginning; None is what the model was trained with here, or any length.
        max_completion_tokens: longer completions lose their end; None likewise.
        batch_size: completions in one forward pass of a process; memory and speed only.
        dtype: of its weights.
        remote_code: allow the model's repository to run its own code.
        accelerator: knows the device and the processes; None finds them.
    """

    model: str | tuple[str, ...]
    average: str | tuple[str, ...] = ()
    tokenizer: str | None = None
    prompt: bool = True
    max_prompt_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    batch_size: Count = 32
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    remote_code: bool = False
    accelerator: Accelerator | None = field(default=None, repr=False, compare=False)
    collective: ClassVar[bool] = True

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K], on the CPU.

        Raises:
            PrefoptError: it cannot be loaded, its tokenizer has no chat template for a conversation, or one of several processes
                calls it alone.
        """
        refuse_alone(f"the reward model {self._checkpoints[0][0]}")
        width = max((len(texts) for texts in completions), default=0)
        scores = torch.full((len(prompts), width), math.nan)
        # One example for each completion, so that its number says whose it is whatever the tokenisation drops.
        places = [(b, k) for b, texts in enumerate(completions) for k in range(len(texts))]
        notes = [Counter[str]() for _ in prompts]
        examples, episodes = [], [self._episode(prompts[b], completions[b][k], rows[b], k) for b, k in places]
        for (b, _), episode in zip(places, episodes, strict=True):
            completion, found = without_control(episode, self._control, self._tokenizer.eos_token)
            notes[b]["control"] += found
            examples.append(self._example(prompts[b], completion, rows[b], b))
        read, unknown = self._read(examples), unknown_token(self._tokenizer)
        for row in read:
            note = notes[places[row.row][0]]
            note["cut"] += row.prompt_cut or row.completions_cut[0]
            note["unknown"] += unknown is not None and unknown in row.completion_ids[0]
        counts = iter(map(turns_in, episodes))
        steps = None if self._steps is None else [[[0.0] * next(counts) for _ in texts] for texts in completions]
        if read:
            batch, what = collate(read), f"the reward model {self._checkpoints[0][0]}"
            with advising(what, ("its batch_size", "max_prompt_tokens", "max_completion_tokens")):
                outputs = forward(self.scorer, batch, Needs(rewards=True), self.batch_size, self._accelerator)
            assert outputs.rewards is not None
            at = [places[row.row] for row in read]
            scores = scores.to(outputs.rewards.dtype)
            scores[*torch.tensor(at).T] = outputs.rewards[:, 0].cpu() if steps is None else 0.0
            if steps is not None:
                for row, (b, k), parts in zip(read, at, self._parts(read, batch, outputs), strict=True):
                    _refuse_more_turns(parts, steps[b][k], row.where)
                    steps[b][k][: len(parts)] = map(self._number, parts)  # turns that were cut off keep their 0
        for note, line, texts in zip(notes, scores.tolist(), completions, strict=True):
            note["empty"] = sum(map(math.isnan, line[: len(texts)]))
        return Verdict(scores, notes=[dict(+note) for note in notes], steps=steps)

    def _parts(self, read: Sequence[Tokenised], batch: Batch, outputs: Outputs) -> Iterator[list[Tensor]]:
        """Of each row's completion, what the model gives the steps of each turn that was read."""
        assert outputs.step_rewards is not None
        numbers, ends = outputs.step_rewards[:, 0].double().cpu(), batch.step_ends[:, 0]
        runs = replace(batch, columns={}).steps[:, 0]  # of the mask: turns of a conversation
        for row, own, at, turn in zip(read, numbers, ends, runs, strict=True):
            if row.columns.get(EPISODE) and row.step_ends is not None:
                yield list(own[list(row.step_ends[0])][:, None])
            else:
                yield [own[at & (turn == n)] for n in range(int(turn.max()) + 1)]

    def _number(self, steps: Tensor) -> float:
        """Of one turn."""
        if self._steps == "logit":
            return steps.sigmoid().prod().item() if len(steps) else 0.0
        return steps.sum().item()

    def _read(self, examples: Sequence[Example]) -> list[Tokenised]:
        """The examples in which its tokenizer finds something, as the model was trained to read them."""
        longest, trained = (self.max_prompt_tokens, self.max_completion_tokens), self._reading
        if trained is not None:
            own = (trained.max_prompt_tokens, trained.max_completion_tokens)
            most = [given or known for given, known in zip(longest, own, strict=True)]
            return tokenise(examples, self._tokenizer, *most)[0]
        positions = positions_of(self.found)
        rendering = Rendering(self._tokenizer, positions.number if positions is not None and positions.table else None)
        read = [rendering.row(example, number, self.prompt, longest) for number, example in enumerate(examples)]
        return [row for row in read if row is not None]

    def check(self) -> None:
        """Find the models, loading none.

        Raises:
            PrefoptError: one is not there, or is no reward model.
        """
        for names in self._checkpoints:
            find_scorer(names, self.remote_code)

    def load(self) -> None:
        """Load model and tokenizer."""
        self.check()
        _ = self.scorer

    @property
    def found(self) -> str:
        """Folder or hub id of the model, the first of several."""
        return find_model(self._checkpoints[0])

    @cached_property
    def scorer(self) -> Scorer:
        """The model, loaded once, in evaluation mode and without gradients."""
        scorer = load_scorer(self._spec(self._checkpoints[0]), self._tokenizer, seed=0, trained=True)
        if len(self._checkpoints) > 1:
            self._average(scorer)
        return scorer.to(self._accelerator.device).eval().requires_grad_(False)

    def _average(self, scorer: Scorer) -> None:
        """The mean of all checkpoints, in double precision, one after another: no more than two are in memory."""
        first, *others = self._checkpoints
        mine = scorer.model.state_dict()
        sums = {name: value.double() for name, value in mine.items() if value.is_floating_point()}
        for names in others:
            spec = self._spec(names)
            _refuse_vocabularies(self._tokenizer, load_tokenizer(spec), f"{first[0]} and {names[0]}")
            other = load_scorer(spec, self._tokenizer, seed=0, trained=True).model.state_dict()
            _refuse_architectures(mine, other, f"{first[0]} and {names[0]}")
            for name in sums:
                sums[name] += other[name].double()
        for name, total in sums.items():
            mine[name].copy_(total / len(self._checkpoints))

    def _episode(self, prompt: Prompt, completion: Completion, row: Mapping[str, Any], k: int) -> Completion:
        """The completion; where it is the text of an episode, and turns matter, its turns."""
        if self._steps is None or not isinstance(prompt, str) or not isinstance(completion, str):
            return completion
        return tuple(row[MESSAGES][k]) or completion if row.get(MESSAGES) else completion

    def _example(self, prompt: Prompt, completion: Completion, row: Mapping[str, Any], b: int) -> Example:
        where = f"prompt {b + 1} of the feedback {self._checkpoints[0][0]}"
        # What a chat template takes beside the turns; nothing else of the row matters to the tokenisation.
        columns = {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}
        of_one = completion if isinstance(completion, str) else tuple(completion)
        told = bool(row.get(MESSAGES)) or is_text_episode(prompt, (of_one,))
        if self._reading is READING and not (isinstance(prompt, str) and (told or isinstance(completion, str))):
            raise PrefoptError(
                f"{where}: this token classifier labels steps of texts, which end in a line break, and this is a conversation: "
                "give prompts as texts, or train a model whose steps are turns (`objective: StepReward`)"
            )
        if not isinstance(completion, str):
            if not self.prompt:
                raise PrefoptError(
                    f"{where}: `prompt: false` is for single texts, and this completion has several turns"
                )
            if isinstance(prompt, str) and told:
                example = _text_episode(prompt, completion, where)
                return _in_lines(example) if self._reading is READING else example
            asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
            return Example(asked, (up_to_last_answer(completion),), where=where, columns=columns)
        if not self.prompt or isinstance(prompt, str):
            separator = None if self._reading is None else self._reading.separator
            example = Example(prompt if self.prompt else "", (completion,), where=where, columns=columns)
            return in_steps(example, separator) if separator else example
        turns = ({"role": "assistant", "content": completion},) if completion else ()
        return Example(tuple(prompt), (turns,), where=where, columns=columns)

    @property
    def _checkpoints(self) -> list[tuple[str, ...]]:
        """The names of each: `model`, of which one is taken, and each of `average`."""
        model, average = ((value,) if isinstance(value, str) else value for value in (self.model, self.average))
        return [tuple(model), *((name,) for name in average)]

    def _spec(self, names: tuple[str, ...]) -> recipe.Policy:
        return recipe.Policy(model=names, tokenizer=self.tokenizer, dtype=self.dtype, remote_code=self.remote_code)

    @cached_property
    def _reading(self) -> Reading | None:
        """How prefopt trained it to read, or, of a token classifier, TRL; None for other models from elsewhere."""
        return reading_of(self.found) or (READING if labels_steps(self.found, self.remote_code) else None)

    @property
    def _steps(self) -> StepRewards | None:
        """What it gives at the end of a step, where it is a model of steps."""
        return None if self._reading is None else self._reading.steps

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        return control_tokens(self._tokenizer)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._spec(self._checkpoints[0]))

    @cached_property
    def _accelerator(self) -> Accelerator:
        return self.accelerator or Accelerator(cpu=not torch.accelerator.is_available())


def turns_in(completion: Completion) -> int:
    """The turns of the policy in a completion: of several messages those of the assistant, otherwise one."""
    return 1 if isinstance(completion, str) else sum(turn.get("role") == "assistant" for turn in completion)


def up_to_last_answer(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns of an episode without what its environment says behind the policy's last one."""
    end = len(turns)
    while end and turns[end - 1].get("role") != "assistant":
        end -= 1
    return tuple(turns[:end])


def _text_episode(prompt: str, turns: Sequence[Message], where: str) -> Example:
    """The turns as one text, whose steps end where the policy's turns do."""
    steps: list[str] = []
    said = ""
    for turn in up_to_last_answer(turns):
        said += str(turn.get("content") or "")
        if turn.get("role") == "assistant":
            steps, said = [*steps, said], ""
    return Example(prompt, ("".join(steps),), where=where, columns={EPISODE: True}, steps=(tuple(steps),))


def _in_lines(episode: Example) -> Example:
    """The turns of an episode as the steps that a token classifier labels, which end in a line break; the last one gets it."""
    assert episode.steps is not None
    *others, last = episode.steps[0]
    if not all(step.endswith(LINE_BREAK) for step in others):
        raise PrefoptError(
            f"{episode.where}: this token classifier labels steps that end in a line break, and a turn of this episode ends "
            f"otherwise: let the environment end turns there, `stop = ({LINE_BREAK!r},)`"
        )
    steps = (*others, last.removesuffix(LINE_BREAK) + LINE_BREAK)
    return replace(episode, completions=("".join(steps),), steps=(steps,))


def _refuse_more_turns(parts: Sequence[Tensor], turns: Sequence[float], where: str) -> None:
    if len(parts) > len(turns):
        raise PrefoptError(
            f"{where}: the reward model's chat template writes {len(turns)} turns of the assistant as {len(parts)} parts, "
            "so that the rewards of steps belong to no turn; name a tokenizer whose template keeps turns whole in `tokenizer`"
        )


def _refuse_architectures(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: str) -> None:
    shapes, others = ({name: list(value.shape) for name, value in state.items()} for state in (one, other))
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            raise PrefoptError(
                f"the weights of {names} cannot be averaged: {name} has the shape {shapes.get(name, 'none')} in one and "
                f"{others.get(name, 'none')} in the other; only models of one architecture, fine-tuned from one model, can"
            )


def _refuse_vocabularies(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, names: str) -> None:
    if one.get_vocab() != other.get_vocab():
        raise PrefoptError(f"the weights of {names} cannot be averaged: their tokenizers have different vocabularies")
