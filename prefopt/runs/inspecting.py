"""Looking at a policy without training it: evaluate, sample, find run folders."""

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data import DiskRows, Example, Tokenised, tokenise_to_disk
from prefopt.evaluation.evaluation import Evaluation, with_sets
from prefopt.evaluation.held_out import distinct_prompts
from prefopt.objectives import load_objective
from prefopt.policy import Policy, load_tokenizer, make_sampler
from prefopt.policy.finding import OLDER_CHECKPOINT
from prefopt.runs.folder import RunFolder, run_of
from prefopt.runs.lengths import longest_of, models_of, position_warnings, sampled
from prefopt.runs.manifest import changed_parts, date_of, described
from prefopt.runs.planning import Plan, plan
from prefopt.runs.preparing import evaluation_sampler, judges, load_models, make_evaluator
from prefopt.runs.progress import show_data, show_warnings
from prefopt.runs.threads import Shape, settle_threads
from prefopt.runs.tokens import checked_acting, tokenised
from prefopt.sources.acting import Acting
from prefopt.sources.writing import Completer
from prefopt.support.dates import fixed_date
from prefopt.support.errors import PrefoptError
from prefopt.support.out_of_memory import SAMPLING, advising
from prefopt.support.seeds import seed_for
from prefopt.support.terminal import Terminal
from prefopt.training.devices import computing, of_main_process
from prefopt.types import Needs


def trained(folder: Path, overrides: Sequence[str] = ()) -> recipe.Recipe:
    """The recipe of a finished run with its trained policy in the place of the one it started from, now the reference.

    Args:
        folder: of the run; or one of its checkpoints, whose policy it then is.
        overrides: of the recipe.

    Raises:
        PrefoptError: no run folder, or one without a trained policy.
    """
    files, model = run_of(folder)
    settings = files.recipe(overrides)
    if not model.is_dir():
        raise PrefoptError(_without_policy(files, model))
    reference = settings.reference
    if reference.model is None:
        reference = reference.model_copy(update={"model": settings.policy.model, "every": None})
    policy = settings.policy.model_copy(update={"model": (str(model),), "adapter": None})
    return settings.model_copy(update={"policy": policy, "reference": reference})


def _without_policy(files: RunFolder, model: Path) -> str:
    """What to do where a run, or one of its checkpoints, has no policy."""
    if model != files.policy:
        return f"{model.parent}: {OLDER_CHECKPOINT}"
    if files.trained or files.finished:
        return (
            f"{model} is missing: restore it; or remove {files.summary_file} and {files.trained_file}, and "
            f"`prefopt run {files} --resume` trains on from the last checkpoint"
        )
    newest = files.newest_checkpoint
    return f"{files} has no trained policy yet; finish the run: prefopt run {files} --resume" + (
        f", or name the checkpoint {newest}" if newest else ""
    )


def _begun(policy: recipe.Policy) -> Mapping[str, Any]:
    """The manifest of the run that trained a policy, where one did."""
    return run_of(Path(policy.model[0]))[0].manifest() if len(policy.model) == 1 else {}


def _date_of(policy: recipe.Policy) -> date:
    """The date of the run that trained a policy, where one did: its chat template wrote it then."""
    return date_of(_begun(policy))


def evaluate(settings: recipe.Recipe, console: Console) -> Evaluation:
    """Measure the recipe's policy, as it is before training, on the rows of `evaluate.part` and of further sets.

    Raises:
        PrefoptError: whatever a user can put right.
    """
    with computing(settings.train) as accelerator, fixed_date(_date_of(settings.policy)):
        part, console = settings.evaluate.part, of_main_process(accelerator, console)
        return with_sets(part, measure(settings, [part, *settings.evaluate.sets], accelerator, console))


def measure(
    settings: recipe.Recipe,
    parts: Sequence[str],
    accelerator: Accelerator,
    console: Console,
    begun: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Evaluation]:
    """`evaluate` on parts of the data, each by itself, with devices that are there already.

    Args:
        settings: what to measure.
        parts: of the data, and further sets.
        accelerator: devices, processes and precision.
        console: where a person follows it.
        begun: the manifest of the run that this is an evaluation of, whose rows these must be; empty for any rows.

    Raises:
        PrefoptError: whatever a user can put right.
    """
    planned = plan(settings)
    tokenizer = load_tokenizer(settings.policy)
    data = {part: held_out_rows(planned, part, tokenizer, console, begun) for part in parts}
    longest = longest_of(settings, data)
    show_warnings(console, position_warnings(models_of(settings, planned.needs.rewards), longest))
    if settings.evaluate.prompts and not planned.needs.rewards:
        show_warnings(console, checked_acting(settings.evaluated_in, _acted_in(settings), data[parts[0]], tokenizer))
    needs = Needs(rewards=planned.needs.rewards, step_rewards=planned.needs.step_rewards, reference=True)
    models = load_models(settings, needs, tokenizer, accelerator)
    shape, rows = Shape.of(settings, trains=False), data[parts[0]]
    began = begun or _begun(settings.policy)
    settle_threads(settings.train.threads, models.trained, rows, shape, accelerator, console, began)
    measuring = judges(settings, accelerator, models.trained)
    sampler = evaluation_sampler(settings, accelerator, models.trained)
    evaluations = {}
    for part, rows in data.items():
        evaluator = make_evaluator(rows, settings, accelerator, models, measuring, sampler, part)
        with console.status(f"evaluating on {part} rows"):
            evaluations[part] = evaluator(models.trained)
    return evaluations


def _acted_in(settings: recipe.Recipe) -> str:
    """The key of the environment that samples are written in."""
    return "evaluate.environment" if settings.evaluate.environment is not None else "source.rollouts.environment"


def held_out_rows(
    planned: Plan, part: str, tokenizer: PreTrainedTokenizerBase, console: Console, begun: Mapping[str, Any]
) -> DiskRows[Tokenised]:
    """Tokenised rows of a part of the data, which are those that the run of a manifest began with, where there is one.

    Raises:
        PrefoptError: there are none, or they are others.
    """
    rows, report = tokenised(planned.parts[part], part, planned.recipe.source, planned.needs, tokenizer)
    show_data(console, part, report)
    if not rows:
        raise PrefoptError(f"there are no {part} rows to evaluate on; give some in source.{part} or source.split")
    if changed := changed_parts(begun, {"data": {part: described(rows)}}):
        raise PrefoptError(
            f"{' and '.join(changed)} are not those that the run began with: bring them back (source.data)"
        )
    return rows


class SampledText(NamedTuple):
    """A completion for a person to read.

    Attributes:
        text: without its end.
        tokens: its end included.
        ended: whether it came to an end by itself; otherwise it was cut at the most tokens that are sampled.
        messages: of an episode in an environment, who said what; empty of any other.
        rewards: of each turn of the policy in it.
        stop: why it ended.
    """

    text: str
    tokens: int
    ended: bool
    messages: Sequence[Mapping[str, Any]] = ()
    rewards: Sequence[float] = ()
    stop: str = ""


class SampledPrompt(NamedTuple):
    """A prompt with what was written on it.

    Attributes:
        prompt: as the policy saw it, with what an environment said first.
        completions: in the order in which they were drawn.
        task: which it is of those with this prompt, its column of this name; None where it has none.
    """

    prompt: str
    completions: Sequence[SampledText]
    task: Any = None


def sample(settings: recipe.Recipe, own: Sequence[str] | None, number: int, completions: int) -> list[SampledPrompt]:
    """Prompts with completions of the recipe's policy, as it is before training.

    Args:
        settings: its policy, its sampling, its held-out prompts.
        own: prompts as text, each one turn of the user where the tokenizer has a chat template; None takes held-out ones.
        number: of held-out prompts.
        completions: of each prompt.

    Raises:
        PrefoptError: the recipe trains a scorer, or there is no prompt.
    """
    _refuse_scorer(settings)
    with computing(settings.train) as accelerator, fixed_date(_date_of(settings.policy)):
        tokenizer = load_tokenizer(settings.policy)
        examples = _asked(own, bool(tokenizer.chat_template)) if own else plan(settings).data.test
        token_rows, _ = tokenise_to_disk(examples, tokenizer, settings.source.max_prompt_tokens)
        rows = list(islice(distinct_prompts(token_rows), None if own else number))
        if not rows:
            raise PrefoptError("there is no prompt to start from; give one with --prompt")
        most, key = recipe.most_tokens(settings.evaluate.sampling, settings.evaluated_in)
        longest = sampled(rows, most, "samples", f"evaluate.{key}", "source.max_prompt_tokens")
        show_warnings(
            of_main_process(accelerator, Terminal(stderr=True)),
            position_warnings({"policy.model": settings.policy.model}, longest),
        )
        warnings = checked_acting(settings.evaluated_in, _acted_in(settings), rows, tokenizer)
        show_warnings(of_main_process(accelerator, Terminal(stderr=True)), warnings)
        model = load_models(settings, Needs(), tokenizer, accelerator).trained
        assert isinstance(model, Policy)
        seeds = torch.tensor([seed_for(settings.seed_of("evaluation"), "sample", i) for i in range(len(rows))])
        sampling, shape = settings.evaluate.sampling, Shape(len(rows), completions, drawn=len(rows) * completions)
        silent, began = Terminal(quiet=True), _begun(settings.policy)
        settle_threads(settings.train.threads, model, rows, shape, accelerator, silent, began)
        sampler = make_sampler(settings.evaluate.samples, accelerator, "evaluate", model)
        acting = Acting.of(settings.evaluated_in, "evaluate.environment", tokenizer)
        completer = Completer.of(sampler, model, sampling, accelerator, acting)
        completer.sync(model)
        with advising("sampling", SAMPLING):
            written = completer.write(model, rows, completions, sampling, seeds)
        return [
            SampledPrompt(
                str(tokenizer.decode(list(of_prompt[0].prompt or row.prompt_ids))),
                [
                    SampledText(
                        completer.text(one, row.example.prompt),
                        len(one.ids),
                        one.ended,
                        one.messages,
                        one.rewards,
                        one.stop,
                    )
                    for one in of_prompt
                ],
                row.example.columns.get("task"),
            )
            for row, of_prompt in zip(rows, written, strict=True)
        ]


def _refuse_scorer(settings: recipe.Recipe) -> None:
    for term in settings.objective:
        if load_objective(term.name, **term.fields).needs.rewards:
            raise PrefoptError(f"{term.name} trains a scorer, which writes nothing; `prefopt evaluate` measures it")


def _asked(prompts: Sequence[str], chat: bool) -> list[Example]:
    return [Example(prompt=({"role": "user", "content": text},) if chat else text, group=text) for text in prompts]
