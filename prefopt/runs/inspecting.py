"""Looking at a policy without training it: evaluate, sample."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from prefopt import recipe
from prefopt.data import Example, tokenise
from prefopt.evaluation.evaluator import Evaluation, Evaluator, decoded, distinct_prompts
from prefopt.evaluation.win_rates import contest
from prefopt.feedback import make_feedback
from prefopt.objectives import load_objective
from prefopt.policy import Policy, TransformersSampler, load_policy, load_scorer, load_tokenizer, make_reference
from prefopt.runs.planning import plan
from prefopt.runs.progress import show_data
from prefopt.runs.run import saved_recipe
from prefopt.support.errors import PrefoptError
from prefopt.support.seeds import seed_for
from prefopt.training.devices import make_accelerator
from prefopt.types import Batch


def trained(folder: Path, overrides: Sequence[str] = ()) -> recipe.Recipe:
    """The recipe of a finished run with its trained policy in the place of the one it started from, now the reference.

    Raises:
        PrefoptError: no run folder, or one without a trained policy.
    """
    settings = saved_recipe(folder, overrides)
    if not (folder / "policy").is_dir():
        raise PrefoptError(f"{folder} has no trained policy yet; finish the run: prefopt run {folder} --resume")
    reference = settings.reference
    if reference.model is None:
        reference = reference.model_copy(update={"model": settings.policy.model, "every": None})
    policy = settings.policy.model_copy(update={"model": (str(folder / "policy"),), "adapter": None})
    return settings.model_copy(update={"policy": policy, "reference": reference})


def evaluate(settings: recipe.Recipe, console: Console) -> Evaluation:
    """Measure the recipe's policy, as it is before training, on the test rows."""
    accelerator, prepared = make_accelerator(settings.train), plan(settings)
    tokenizer = load_tokenizer(settings.policy)
    source = settings.source
    rows, report = tokenise(prepared.data.test, tokenizer, source.max_prompt_tokens, source.max_completion_tokens)
    show_data(console, "test", report)
    if not rows:
        raise PrefoptError("there are no test rows to evaluate on; give some in source.test or source.split")
    load = load_scorer if prepared.needs.rewards else load_policy
    model = load(settings.policy, tokenizer, settings.seed_of("init")).to(accelerator.device)
    reference = make_reference(model, settings.reference, settings.policy) if isinstance(model, Policy) else None
    gold, judge = (
        None if spec is None else make_feedback(spec, accelerator, key)
        for key, spec in (("evaluate.gold", settings.evaluate.gold), ("evaluate.judge", settings.evaluate.judge))
    )
    meeting, seed = contest(judge, settings.evaluate.against), settings.seed_of("evaluation")
    evaluator = Evaluator(rows, settings.evaluate, accelerator, reference, gold, seed, meeting)
    with console.status("evaluating on test rows"):
        return evaluator(model)


def sample(
    settings: recipe.Recipe, own: Sequence[str] | None, number: int, completions: int
) -> Iterator[tuple[str, Sequence[str]]]:
    """Prompts with completions of the recipe's policy, as it is before training.

    Args:
        settings: its policy, its sampling, its held-out prompts.
        own: prompts as text, each one turn of the user where the tokenizer has a chat template; None takes held-out ones.
        number: of held-out prompts.
        completions: of each prompt.
    """
    _refuse_scorer(settings)
    accelerator = make_accelerator(settings.train)
    tokenizer = load_tokenizer(settings.policy)
    examples = _asked(own, bool(tokenizer.chat_template)) if own else plan(settings).data.test
    tokenised, _ = tokenise(examples, tokenizer, settings.source.max_prompt_tokens)
    rows = list(islice(distinct_prompts(tokenised), None if own else number))
    if not rows:
        raise PrefoptError("there is no prompt to start from; give one with --prompt")
    model = load_policy(settings.policy, tokenizer, settings.seed_of("init")).to(accelerator.device)
    seeds = torch.tensor([seed_for(settings.seed_of("evaluation"), "sample", i) for i in range(len(rows))])
    prompts = [row.prompt_ids for row in rows]
    drawn = TransformersSampler()(model, prompts, completions, settings.evaluate.sampling, seeds)
    texts = decoded(model, Batch(tuple(prompts), drawn.completion_ids, drawn.mask))
    for row, written in zip(rows, texts, strict=True):
        yield str(tokenizer.decode(list(row.prompt_ids))), written


def _refuse_scorer(settings: recipe.Recipe) -> None:
    for term in settings.objective:
        if load_objective(term.name, **term.fields).needs.rewards:
            raise PrefoptError(f"{term.name} trains a scorer, which writes nothing; `prefopt evaluate` measures it")


def _asked(prompts: Sequence[str], chat: bool) -> list[Example]:
    return [Example(prompt=({"role": "user", "content": text},) if chat else text, group=text) for text in prompts]
