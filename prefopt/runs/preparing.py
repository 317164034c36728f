"""Everything that a run, an evaluation or a sampling needs of a recipe: loaded and checked. Nothing is written or trained."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.data import DiskRows, Tokenised
from prefopt.data.ordering import ORDERS
from prefopt.data.steps import separator_of
from prefopt.environments import EnvironmentReward
from prefopt.evaluation.evaluator import Evaluator
from prefopt.evaluation.metrics import make_metrics
from prefopt.evaluation.of_samples import SampleMetrics
from prefopt.evaluation.win_rates import contest
from prefopt.feedback import Transformed, bare, is_bare, make_feedback, reward_models
from prefopt.objectives.terms import Term
from prefopt.policy import (
    DIVERGENCES,
    Following,
    Policy,
    Reading,
    Reference,
    Scorer,
    load_critic,
    load_policy,
    load_scorer,
    load_tokenizer,
    make_reference,
    make_sampler,
)
from prefopt.policy.encoder import embedded, load_encoder
from prefopt.policy.sharding import shard_weights
from prefopt.runs.folder import RunFolder
from prefopt.runs.matching import batch_columns
from prefopt.runs.planning import Plan, plan
from prefopt.runs.progress import show_heading
from prefopt.runs.quantising import check_adapter_trained
from prefopt.runs.threads import Shape, settle_threads
from prefopt.runs.tokens import with_tokens
from prefopt.sources.acting import Acting
from prefopt.sources.recorded import Recorded
from prefopt.sources.rollouts import Rollouts
from prefopt.sources.scoring import Scoring
from prefopt.sources.writers import writers
from prefopt.sources.writing import Completer
from prefopt.support.profile import timed
from prefopt.support.seeds import seed_for
from prefopt.types import Feedback, Needs, Sampler, Source


@dataclass(frozen=True)
class Models:
    """The trained model and what is held beside it.

    Attributes:
        tokenizer: of the policy; everything is tokenised by it.
        trained: a policy, or a scorer where an objective trains rewards.
        reference: what objectives compare with; None where nothing does.
        start: the model before training, which evaluations measure the distance to; it is `reference` unless that one moves.
    """

    tokenizer: PreTrainedTokenizerBase
    trained: Policy | Scorer
    reference: Reference | Following | None
    start: Reference | Following | None

    @property
    def players(self) -> dict[str, Any]:
        """Those that an environment may ask for, by name."""
        return {"policy": self.trained, "reference": self.reference}


@dataclass(frozen=True)
class Prepared:
    """A run that is ready for its first step.

    Attributes:
        plan: the recipe, checked, with its data.
        accelerator: devices, processes and precision.
        data: tokenised rows of train, validation and test, and of further sets.
        models: that is trained, and those beside it.
        terms: what is minimised.
        source: the logical batches of terms without a source of their own.
        rows: how many rows the source has.
        evaluators: by the part of the data that they measure on.
    """

    plan: Plan
    accelerator: Accelerator
    data: Mapping[str, DiskRows[Tokenised]]
    models: Models
    terms: Sequence[Term]
    source: Source
    rows: int
    evaluators: Mapping[str, Evaluator]

    @property
    def recipe(self) -> recipe.Recipe:
        """What it was prepared from."""
        return self.plan.recipe

    @property
    def rollouts(self) -> Rollouts | None:
        """The source, where the policy writes what it learns from."""
        return self.source if isinstance(self.source, Rollouts) else None

    @property
    def feedbacks(self) -> Mapping[str, Feedback]:
        """What scores that which the policy writes, by what it is: scores, costs."""
        return self.rollouts.feedback if self.rollouts is not None else {}

    @property
    def others(self) -> dict[str, nn.Module]:
        """The models beside the trained one, by what they are: a reference of its own, and reward models."""
        named: dict[str, nn.Module] = {}
        reference = self.models.reference
        if reference is not None and reference.policy is not self.models.trained:
            named["reference"] = reference.policy
        for what, feedback in self.feedbacks.items():
            named |= {f"{what}: {name}": model for name, model in reward_models(feedback).items()}
        return named

    @property
    def judging(self) -> dict[str, Any]:
        """What evaluations ask, by the key of the recipe that names it."""
        named: dict[str, Any] = {}
        for evaluator in self.evaluators.values():
            judge = None if evaluator.contest is None else evaluator.contest.judge
            asked: dict[str, Any] = {"judge": judge, **evaluator.metrics.feedbacks, **evaluator.metrics.corpus}
            asked.pop("reward", None)  # which is the feedback itself
            named |= {f"evaluate.{what}": feedback for what, feedback in asked.items() if feedback is not None}
        return named

    @property
    def measuring(self) -> dict[str, nn.Module]:
        """The reward models among these."""
        return {
            f"{what}: {name}": model
            for what, feedback in self.judging.items()
            for name, model in reward_models(feedback).items()
        }


def prepare(
    settings: recipe.Recipe, accelerator: Accelerator, console: Console, folder: Path | None = None
) -> Prepared:
    """Load and check everything that a run needs.

    Args:
        settings: what to run.
        accelerator: devices, processes and precision.
        console: where a person sees what the data are.
        folder: of the run, where rollouts put a batch that their feedback fails on; a run that goes on has its manifest there.

    Raises:
        PrefoptError: whatever a user can put right; what can be known before a model is loaded is refused before.
    """
    with console.status("reading the data, checking the recipe"), timed("reading"):
        planned = plan(settings)
        check_adapter_trained(settings)
    show_heading(console, planned)
    with timed("tokenising"):
        tokenizer = load_tokenizer(settings.policy)
        planned, data, train, own = with_tokens(planned, tokenizer, console)
    terms = _terms(planned, own, accelerator, console)
    rows = _with_embeddings(train, settings.source, settings.policy, accelerator, console)
    columns = batch_columns(planned.wanted, settings.source)
    needs = replace(planned.needs, reference=planned.compares)
    separator = separator_of(planned.data.train) if needs.step_rewards else None
    with timed("models"):
        models = load_models(settings, needs, tokenizer, accelerator, separator)
    begun = {} if folder is None else RunFolder(folder).manifest()
    settle_threads(settings.train.threads, models.trained, rows, Shape.of(settings), accelerator, console, begun)
    learnt = _scores(settings, accelerator, models.trained) if isinstance(models.trained, Policy) else None
    measuring = judges(settings, accelerator, models.trained, learnt)
    source = _source(
        planned, models, rows, columns, learnt, measuring.metrics.feedbacks.get("gold"), accelerator, folder
    )
    sampler = evaluation_sampler(settings, accelerator, models.trained, source)
    evaluators = {
        part: make_evaluator(data[part], settings, accelerator, models, measuring, sampler, part)
        for part in planned.held_out
    }
    return Prepared(planned, accelerator, data, models, terms, source, len(rows), evaluators)


def load_models(
    settings: recipe.Recipe,
    needs: Needs,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    separator: str | None = None,
) -> Models:
    """The model that a recipe trains, as it is before training, and its reference.

    Args:
        settings: name the models.
        needs: whether the model is a scorer (`rewards`), has a critic (`values`) and is held beside a `reference`.
        tokenizer: of the policy.
        accelerator: where they are put.
        separator: what follows each step of the texts that a scorer of steps is trained on.

    Raises:
        PrefoptError: a model cannot be loaded, or two that share token ids have different vocabularies.
    """
    source = settings.source
    reading = Reading(source.max_prompt_tokens, source.max_completion_tokens, True, needs.step_rewards, separator)
    shard = settings.train.shard if accelerator.num_processes > 1 else None
    # Sharded, weights go to their devices layer by layer.
    device = torch.device("cpu") if shard is not None else accelerator.device
    trained = _trained(settings.policy, needs, tokenizer, settings.seed_of("init"), device, reading)
    models = _with_reference(trained, settings, needs, tokenizer)
    if shard is not None:
        shard_weights(models.trained, accelerator, shard)
        if models.reference is not None and models.reference.policy is not models.trained:
            shard_weights(models.reference.policy, accelerator, shard)
    return models


def _with_reference(
    trained: Policy | Scorer, settings: recipe.Recipe, needs: Needs, tokenizer: PreTrainedTokenizerBase
) -> Models:
    """The trained model, and what it is compared with."""
    if isinstance(trained, Scorer) or not needs.reference:
        return Models(tokenizer, trained, None, None)
    spec = settings.reference
    if settings.train.shard is not None:  # a cache would have processes ask a sharded model about different rows
        spec = spec.model_copy(update={"cache": False})
    reference = start = make_reference(trained, spec, settings.policy)
    if spec.every is not None:  # distances are measured to the start, not to a reference that moves
        start = make_reference(trained, spec.model_copy(update={"every": None}), settings.policy)
    if needs.statistics & DIVERGENCES.keys():
        trained.attach_reference(reference.policy)
    return Models(tokenizer, trained, reference, start)


class Judges(NamedTuple):
    """What measures samples, where the recipe names it.

    Attributes:
        judge: says whether samples beat others.
        metrics: the reward that counts, that which is learnt from, and the recipe's own.
    """

    judge: Transformed | None
    metrics: SampleMetrics


def judges(
    settings: recipe.Recipe,
    accelerator: Accelerator,
    model: Policy | Scorer,
    learnt: Transformed | None = None,
) -> Judges:
    """What `evaluate` names, ready to be called, and the feedback that is learnt from, without its transforms.

    Args:
        settings: of the run.
        accelerator: devices, processes and precision.
        model: that is trained.
        learnt: the feedback, where it is there already.
    """
    evaluate, policy = settings.evaluate, model if isinstance(model, Policy) else None
    if learnt is None and policy is not None and settings.feedback is not None and is_bare(settings.feedback):
        learnt = _feedback("feedback", settings.feedback, accelerator, model)
    # What an environment gives is measured as `return` in any case.
    reward = bare(learnt) if learnt is not None and settings.feedback is not None else None
    judge = _feedback("evaluate.judge", evaluate.judge, accelerator, model)
    return Judges(judge, sample_metrics(evaluate, accelerator, policy, reward))


def sample_metrics(
    evaluate: recipe.Evaluate,
    accelerator: Accelerator,
    policy: Policy | None = None,
    reward: Transformed | None = None,
) -> SampleMetrics:
    """What measures samples.

    Args:
        evaluate: names it.
        accelerator: devices, processes and precision.
        policy: that is trained, for classes that ask for it.
        reward: that is learnt from.
    """
    gold = _feedback("evaluate.gold", evaluate.gold, accelerator, policy)
    own, corpus = make_metrics(evaluate.metrics, accelerator, policy)
    feedbacks = {name: one for name, one in (("gold", gold), ("reward", reward)) if one is not None}
    return SampleMetrics(feedbacks | own, corpus, evaluate.metrics)


def make_evaluator(
    rows: DiskRows[Tokenised],
    settings: recipe.Recipe,
    accelerator: Accelerator,
    models: Models,
    measuring: Judges,
    sampler: Sampler | None,
    part: str,
) -> Evaluator:
    """What measures the model on a part of the data."""
    judge, metrics = measuring
    against = settings.evaluate.against
    others = None if against is None or judge is None else RunFolder(Path(against)).samples()
    meeting, seed = contest(judge, others, part), settings.seed_of("evaluation")
    return Evaluator(
        rows,
        settings.evaluate,
        accelerator,
        models.start,
        seed=seed,
        contest=meeting,
        metrics=metrics.feedbacks,
        sampler=sampler,
        corpus=metrics.corpus,
        acting=Acting.of(
            settings.evaluated_in, "evaluate.environment", getattr(models.trained, "tokenizer", None), models.players
        ),
    )


def evaluation_sampler(
    settings: recipe.Recipe, accelerator: Accelerator, model: Policy | Scorer, source: Source | None = None
) -> Sampler | None:
    """What draws the samples that are measured: that of the rollouts where both ask one server; None for a scorer."""
    if not isinstance(model, Policy):
        return None
    spec = settings.evaluate.samples
    rollouts = source if isinstance(source, Rollouts) and spec.server is not None else None
    if rollouts and (spec.sampler, spec.server) == (rollouts.settings.sampler, rollouts.settings.server):
        return rollouts.completer.sampler
    return make_sampler(spec, accelerator, "evaluate", model)


def _terms(
    planned: Plan, tokens: Mapping[int, DiskRows[Tokenised]], accelerator: Accelerator, console: Console
) -> list[Term]:
    """The objectives with their weights, and with their data where these are their own."""
    settings, train = planned.recipe, planned.recipe.train
    terms = [Term(o, t.weight) for o, t in zip(planned.objectives, settings.objective, strict=True)]
    for index, own in planned.own.items():
        section = settings.objective[index].source
        assert section is not None
        rows = _with_embeddings(tokens[index], section, settings.policy, accelerator, console)
        columns = batch_columns(own.needs, section)
        size = train.minibatch_size or train.batch_size
        seed = seed_for(settings.seed_of("order"), index + 1)
        terms[index] = replace(terms[index], source=Recorded(rows, size, seed, columns, section.writers))
    return terms


def _with_embeddings(
    rows: DiskRows[Tokenised],
    source: recipe.Source,
    policy: recipe.Policy,
    accelerator: Accelerator,
    console: Console,
) -> DiskRows[Tokenised]:
    """With embeddings of the prompts where the recipe says so; one process computes them, the others read them."""
    if source.embeddings is None:
        return rows
    with console.status("embedding prompts"), accelerator.main_process_first():
        encoder = load_encoder(source.embeddings, policy)
        encoder.model.to(accelerator.device)
        return embedded(rows, encoder)


def _trained(
    spec: recipe.Policy,
    needs: Needs,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    device: torch.device,
    reading: Reading,
) -> Policy | Scorer:
    """The model that is trained, with a critic where an objective needs values."""
    if needs.rewards:
        return load_scorer(spec, tokenizer, seed, reading=reading).to(device)
    policy = load_policy(spec, tokenizer, seed).to(device)
    if needs.values:
        policy.critic = load_critic(spec.critic, policy, spec).to(device)
    return policy


def _feedback(
    key: str, spec: recipe.Feedback | None, accelerator: Accelerator, model: Policy | Scorer | None
) -> Transformed | None:
    policy = model if isinstance(model, Policy) else None
    return None if spec is None else make_feedback(spec, accelerator, key, policy)


def _scores(settings: recipe.Recipe, accelerator: Accelerator, policy: Policy) -> Transformed | None:
    """What scores the policy's own completions: a feedback, or else the environment that they are written in."""
    if settings.source.rollouts is None:
        return None
    if settings.feedback is None and settings.source.rollouts.environment is not None:
        return Transformed(EnvironmentReward(), name="EnvironmentReward")
    return _feedback("feedback", settings.feedback, accelerator, policy)


def _source(
    planned: Plan,
    models: Models,
    rows: DiskRows[Tokenised],
    columns: Sequence[str],
    learnt: Transformed | None,
    gold: Feedback | None,
    accelerator: Accelerator,
    folder: Path | None,
) -> Source:
    """Where the batches come from that terms without a source of their own share."""
    settings, source, size = planned.recipe, planned.recipe.source, planned.recipe.train.batch_size
    seed, policy = settings.seed_of("order"), models.trained
    if source.rollouts is None:
        return Recorded(rows, size, seed, columns, source.writers)
    assert isinstance(policy, Policy)
    feedback = {
        "scores": learnt,
        "cost": _feedback("cost", settings.cost, accelerator, policy),
        "gold": gold,
    }
    sampler = make_sampler(source.rollouts, accelerator, policy=policy)
    return Rollouts(
        rows,
        ORDERS[source.rollouts.order](array("L", (len(row.prompt_ids) for row in rows)), seed, planned.steps),
        writers(source, policy, models.reference),
        Completer.of(
            sampler,
            policy,
            source.rollouts.sampling,
            accelerator,
            Acting.of(source.rollouts.environment, "source.rollouts.environment", policy.tokenizer, models.players),
        ),
        Scoring({name: f for name, f in feedback.items() if f is not None}, accelerator, folder),
        planned.needs,
        source.rollouts,
        size,
        settings.seed_of("sampling"),
        source.ties,
        columns,
    )
