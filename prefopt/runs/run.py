"""One run: from a recipe to a folder of results."""

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from rich.console import Console
from rich.markup import escape

from prefopt import recipe
from prefopt.data import DiskRows, Example, Tokenised, preview, tokenise
from prefopt.data.ordering import ORDERS
from prefopt.data.selecting import projected
from prefopt.evaluation.evaluator import Evaluation, Evaluator
from prefopt.evaluation.win_rates import contest
from prefopt.feedback import Transformed, make_feedback, reward_models
from prefopt.objectives.terms import Term
from prefopt.policy import (
    DIVERGENCES,
    Following,
    Policy,
    Reference,
    Scorer,
    load_critic,
    load_policy,
    load_scorer,
    load_tokenizer,
    make_reference,
    make_sampler,
)
from prefopt.policy.decode.sampler import end_tokens
from prefopt.policy.encoder import embedded, load_encoder
from prefopt.runs.accounting import Spent, Work, flops, labels_per_prompt
from prefopt.runs.manifest import manifest
from prefopt.runs.planning import EMBEDDINGS, plan, to_train_on, wanted
from prefopt.runs.progress import show_count, show_data, show_example, show_limit, show_validation, shown
from prefopt.sources.diagnostics import RolloutDiagnostics, beyond
from prefopt.sources.recorded import Recorded
from prefopt.sources.rollouts import Rollouts
from prefopt.sources.writers import writers
from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.files import unused, write_whole
from prefopt.support.fingerprints import fingerprint_weights
from prefopt.support.logs import silence_telemetry
from prefopt.support.plain import plain
from prefopt.support.profile import timed
from prefopt.support.seeds import seed_for
from prefopt.support.sharing import shared, stamp
from prefopt.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from prefopt.training.devices import make_accelerator
from prefopt.training.loop import Step, Trainer
from prefopt.training.trackers import Jsonl, Tracker, WandbRun, has_line, rewind
from prefopt.types import Estimate, Feedback, Needs, Source


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: recipe.yaml, manifest.json, metrics.jsonl, evaluations/, policy/, summary.json.
        before: held-out estimates at step 0.
        after: and at the end.
        change: after − before, paired by prompt.
        numbers: before and after, of the metrics of all samples together, which have no interval.
        rows: held-out rows that were measured.
        writes: the model is a policy that can be sampled from, not a scorer.
    """

    folder: Path
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    change: Mapping[str, Estimate]
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: int = 0
    writes: bool = True


def run(
    settings: recipe.Recipe, folder: Path | None = None, resume: bool = False, console: Console | None = None
) -> RunResult:
    """Train, evaluate before and after, and write everything down.

    Args:
        settings: what to run.
        folder: the run folder; by default a new one below `track.folder`, named after the recipe and the seed.
        resume: go on from the last checkpoint in `folder`.
        console: where a person follows it.

    Raises:
        PrefoptError: whatever a user can put right. What was done so far is kept.
    """
    with timed("loading"):
        made = Run(settings, folder, resume, console or Console(stderr=True))
    return made.finish()


class Run:
    """The pieces of a run, put together; `finish` runs it.

    Args:
        settings: what to run.
        folder: the run folder, or None for a new one.
        resume: go on from the last checkpoint in `folder`.
        console: where a person follows it.
    """

    def __init__(self, settings: recipe.Recipe, folder: Path | None, resume: bool, console: Console):
        silence_telemetry()
        if settings.train.threads is not None:
            torch.set_num_threads(settings.train.threads)
        self.settings, self.console, self.resumed = settings, console, resume
        self.accelerator = make_accelerator(settings.train)
        if not self.accelerator.is_main_process:
            self.console = Console(quiet=True)
        if folder is not None:
            _refuse_folder(folder, settings if resume else None)
        self.plan = plan(settings)
        self._show_heading()
        tokenizer = load_tokenizer(settings.policy)
        self.data = {
            name: self._tokenised(rows, tokenizer, name, self.plan.needs) for name, rows in self._parts().items()
        }
        terms = self._terms(tokenizer)
        rows, columns = self._prepared(self.data["train"], self.plan.wanted, settings.source)
        self.rows = len(rows)
        if rows:
            show_example(self.console, preview(rows[0], tokenizer))
        self.model: Policy | Scorer = self._model(tokenizer)
        self.reference = start = self._reference(settings.reference)
        if settings.reference.every is not None:  # what moves is no measure
            start = self._reference(settings.reference.model_copy(update={"every": None}))
        if isinstance(self.model, Policy) and self.reference and self.plan.needs.statistics & DIVERGENCES.keys():
            self.model.beside(self.reference.policy)
        gold = self._feedback("evaluate.gold", settings.evaluate.gold)
        judge, against = self._feedback("evaluate.judge", settings.evaluate.judge), settings.evaluate.against
        self.folder = self._folder(folder)
        self.console.print(f"\nrun folder {self.folder}/", highlight=False, soft_wrap=True)
        if self.accelerator.is_main_process and not (self.folder / "recipe.yaml").exists():
            write_whole(self.folder / "recipe.yaml", settings.to_yaml())  # from here on it can be resumed
        self.source = self._source(rows, columns, gold)
        self.trainer = Trainer(
            self.model,
            terms,
            self.source,
            settings.train,
            self.plan.steps,
            self.accelerator,
            self.reference,
            settings.seed_of("order"),
            self.folder,
            RolloutDiagnostics() if isinstance(self.source, Rollouts) else None,
        )
        self.accelerator.register_for_checkpointing(self.trainer)
        self.warned: set[str] = set()
        seed = settings.seed_of("evaluation")
        self.evaluators = {
            part: Evaluator(
                self.data[part], settings.evaluate, self.accelerator, start, gold, seed, contest(judge, against, part)
            )
            for part in ("validation", "test")
        }

    def finish(self) -> RunResult:
        """Train to the end."""
        self._write_manifest()
        restored = self._restore()
        tracker = self._tracker()
        part = self.settings.evaluate.part
        try:
            before = self._evaluated(part, 0, tracker, keep=True)
            stopped = ""
            for step in shown(self.trainer, self.plan.steps, self.console, done=restored):
                self._after(step, tracker)
                if stopped := self._limited(step):
                    break
            after = self._evaluated(part, self.trainer.done, tracker, keep=True)
            result = self._conclude(before, after, stopped)
        except BaseException:
            tracker.finish({"finished": False})
            raise
        tracker.finish(_numbers(result.after) | {"finished": True})
        return result

    def _after(self, step: Step, tracker: Tracker) -> None:
        """Log, evaluate and save, as often as the recipe says."""
        settings = self.settings
        if isinstance(self.source, Rollouts):
            step.metrics["rollouts/dropped"] = self.source.dropped
        if step.number % settings.track.every == 0:
            tracker.log(
                step.number,
                {**step.metrics, "tokens": step.tokens, "seconds": round(step.seconds, 4), "batch": step.batch},
            )
        if settings.evaluate.every and step.number % settings.evaluate.every == 0 and step.number < self.plan.steps:
            show_validation(self.console, step.number, self._evaluated("validation", step.number, tracker).estimates())
        if settings.train.checkpoint_every and step.number % settings.train.checkpoint_every == 0:
            with timed("checkpoint"):
                save_checkpoint(
                    self.accelerator, self.folder / "checkpoints", step.number, settings.train.keep_checkpoints
                )

    def _limited(self, step: Step) -> str:
        """Warns, once for each metric, of what has left its bounds; why to stop, if the recipe says so."""
        if unknown := [name for name in self.settings.train.limits if name not in step.metrics]:
            guess = nearest(unknown[0], step.metrics)
            raise PrefoptError(
                f"train.limits: this run has no metric {unknown[0]!r}.{guess} It has: {', '.join(step.metrics)}"
            )
        out = beyond(step.metrics, self.settings.train.limits)
        for name, what in out.items():
            if name not in self.warned:
                self.warned.add(name)
                show_limit(self.console, step.number, what)
        return f"step {step.number}: {'; '.join(out.values())}" if out and self.settings.train.beyond == "stop" else ""

    def _evaluated(self, part: str, step: int, tracker: Tracker, keep: bool = False) -> Evaluation:
        """Measure on a part of the data; a kept evaluation that is on disk is not made again."""
        file = self.folder / "evaluations" / f"{part}-step-{step:06d}.json"
        if keep and file.exists():
            evaluation = Evaluation.from_json(file.read_text())
        else:
            with self.console.status(f"evaluating on {part} rows"), timed("evaluation"):
                evaluation = self._first(part) if step == 0 else self.evaluators[part](self._bare())
            if keep and self.accelerator.is_main_process:
                write_whole(file, evaluation.to_json())
        # A kill may have come between the file and the line, and a resume takes away lines that come after its checkpoint.
        if not (keep and has_line(self.folder / "metrics.jsonl", step, f"{part}/")):
            measured = _numbers(evaluation.estimates()) | dict(evaluation.numbers)
            tracker.log(step, {f"{part}/{name}": value for name, value in measured.items()})
        return evaluation

    def _bare(self) -> Policy | Scorer:
        model: Policy | Scorer = self.accelerator.unwrap_model(self.trainer.model)
        return model

    def _first(self, part: str) -> Evaluation:
        """Of the model before training, which the runs of a study share where they start from the same."""
        model, settings = self._bare(), self.settings
        others = {k: fingerprint_weights(m) for k, m in self._others().items() if k.split(":")[0] != "scores"}
        read = settings.model_dump_json(include={"policy": True, "reference": True, "evaluate": True})
        arithmetic = (settings.train.precision, torch.get_num_threads(), self.accelerator.num_processes)
        # The critic has no say in what is measured.
        key = (part, type(model), fingerprint_weights(model.model), *sorted(others.items()), read, arithmetic)
        seed = settings.seed_of("evaluation")
        return shared("evaluations", (*key, seed, self.data[part].identity), lambda: self.evaluators[part](model))

    def _costs(self) -> Spent:
        rollouts = self.source if isinstance(self.source, Rollouts) else None
        model, train = self._bare(), self.settings.train
        others = self._others()
        reference = 0 if self.reference is None else _parameters(self.reference.policy)
        work = Work(
            parameters=_parameters(model),
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            trained=self.trainer.tokens,
            passes=train.passes,
            sampled=rollouts.tokens if rollouts else 0,
            old=self.trainer.asked_before,
            repeated=self.plan.needs.whole_batch and train.batch_size > train.micro_batch_size,
            reference=reference if self.plan.needs.reference or rollouts is not None else 0,
            scorers=sum(_parameters(m) for name, m in others.items() if name != "reference"),
        )
        seen = min(self.trainer.done * train.batch_size, self.rows)
        labels = rollouts.judged if rollouts else seen * labels_per_prompt(self.settings)
        return Spent(labels, work.sampled, work.trained, flops(work), round(self.trainer.seconds, 3))

    def _conclude(self, before: Evaluation, after: Evaluation, stopped: str = "") -> RunResult:
        numbers = {n: (before.numbers.get(n, math.nan), value) for n, value in after.numbers.items()}
        result = RunResult(
            self.folder,
            before.estimates(),
            after.estimates(),
            after.change_since(before),
            numbers,
            len(self.evaluators[self.settings.evaluate.part].rows),
            isinstance(self.model, Policy),
        )
        if self.accelerator.is_main_process:
            self._bare().save(self.folder / "policy")
            summary = {
                "steps": self.trainer.done,
                **({"stopped": stopped} if stopped else {}),
                "evaluated_on": {"split": self.settings.evaluate.part, "rows": result.rows},
                "costs": asdict(self._costs()),
                "before": _records(result.before) | plain(before.numbers),
                "after": _records(result.after) | plain(after.numbers),
                "change": _records(result.change),
            }
            write_whole(self.folder / "summary.json", json.dumps(summary, indent=2))
        self.accelerator.wait_for_everyone()
        return result

    def _parts(self) -> dict[str, DiskRows[Example]]:
        """Train, validation and test rows; of training rows for rollouts, their prompts."""
        parts, source, needs = self.plan.data._asdict(), self.settings.source, self.plan.wanted
        if source.rollouts is not None:
            rows: DiskRows[Example] = parts["train"]
            key = ("to train on", rows.identity, needs, source.ties, source.writers)
            parts["train"] = shared("examples", key, lambda: DiskRows.of(to_train_on(rows, needs, source)))
        return parts

    def _tokenised(self, rows: DiskRows[Example], tokenizer: Any, name: str, needs: Needs) -> DiskRows[Tokenised]:
        source = self.settings.source
        name_of = self.settings.policy.tokenizer or self.plan.model
        longest = (source.max_prompt_tokens, source.max_completion_tokens)
        key = (stamp(name_of), *longest, rows.identity, tuple(sorted(needs.axes.items())))
        tokenised, report = shared("tokens", key, lambda: tokenise(rows, tokenizer, *longest, axes=needs.axes))
        show_data(self.console, name, report)
        return tokenised

    def _model(self, tokenizer: Any) -> Policy | Scorer:
        """The model that is trained, with a critic where an objective needs values."""
        spec, seed = self.settings.policy, self.settings.seed_of("init")
        if self.plan.needs.rewards:
            return load_scorer(spec, tokenizer, seed).to(self.accelerator.device)
        policy = load_policy(spec, tokenizer, seed).to(self.accelerator.device)
        if self.plan.needs.values:
            policy.critic = load_critic(spec.critic, policy, spec).to(self.accelerator.device)
        return policy

    def _reference(self, spec: recipe.Reference) -> Reference | Following | None:
        # Rollouts are always watched for their KL.
        wanted = (
            self.plan.needs.reference or self.settings.evaluate.prompts or self.settings.source.rollouts is not None
        )
        if not isinstance(self.model, Policy) or not wanted:
            return None
        if self._sharded:  # every process must take part in every forward pass, whatever is kept on its disk
            spec = spec.model_copy(update={"cache": False})
        return make_reference(self.model, spec, self.settings.policy)

    @property
    def _sharded(self) -> bool:
        return self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def _feedback(self, key: str, spec: recipe.Feedback | None) -> Transformed | None:
        live = self.model if isinstance(self.model, Policy) else None
        return None if spec is None else make_feedback(spec, self.accelerator, key, live)

    def _terms(self, tokenizer: Any) -> list[Term]:
        terms = [Term(o, t.weight) for o, t in zip(self.plan.objectives, self.settings.objective, strict=True)]
        train = self.settings.train
        for index, data in self.plan.own.items():
            section = self.settings.objective[index].source
            assert section is not None
            needs = wanted(terms[index].objective.needs, section, terms[index].name)
            rows = self._tokenised(data.train, tokenizer, f"source of {terms[index].name}", needs)
            size = train.minibatch_size or train.batch_size
            prepared, columns = self._prepared(rows, needs, section)
            seed = seed_for(self.settings.seed_of("order"), index + 1)
            terms[index] = replace(terms[index], source=Recorded(prepared, size, seed, columns, section.writers))
        return terms

    def _prepared(
        self, rows: Sequence[Tokenised], needs: Needs, source: recipe.Source
    ) -> tuple[Sequence[Tokenised], Sequence[str]]:
        """Rows as batches take them, embedded where the recipe says so, and the names of their columns."""
        columns = needs.columns
        if source.embeddings is not None:
            rows, columns = self._embedded(rows, source.embeddings), (*columns, EMBEDDINGS)
        if source.rollouts is not None:
            return rows, columns
        counts: Counter[str] = Counter()
        kept = DiskRows.of(projected(rows, needs, source.ties, counts))
        for reason, count in (+counts).items():
            show_count(self.console, count, reason)
        return kept, columns

    def _source(self, rows: Sequence[Tokenised], columns: Sequence[str], gold: Feedback | None) -> Source:
        """Where the batches come from that terms without a source of their own share."""
        settings, source, size = self.settings, self.settings.source, self.settings.train.batch_size
        seed = settings.seed_of("order")
        if source.rollouts is None:
            return Recorded(rows, size, seed, columns, source.writers)
        assert isinstance(self.model, Policy)
        assert self.model.tokenizer is not None
        if self._sharded:
            raise PrefoptError(
                "rollouts sample from whole weights; sharded ones (FSDP, DeepSpeed) are not supported yet"
            )
        feedback = {
            "scores": self._feedback("feedback", settings.feedback),
            "cost": self._feedback("cost", settings.cost),
        }
        made = Rollouts(
            rows,
            ORDERS[source.rollouts.order](array("L", (len(row.prompt_ids) for row in rows)), seed, self.plan.steps),
            writers(source, self.model, self.reference),
            make_sampler(source.rollouts, self.accelerator),
            self.model.tokenizer,
            end_tokens(self.model, source.rollouts.sampling.stop),
            source.rollouts,
            {what: f for what, f in (feedback | {"gold": gold}).items() if f is not None},
            self.plan.needs,
            source.ties,
            size,
            settings.seed_of("sampling"),
            self.accelerator,
            self.folder,
            columns,
        )
        if not (self.resumed and checkpoints(self.folder / "checkpoints")):  # what was fitted is in the checkpoint
            with self.console.status("scoring samples of the reference"):
                made.fit(self.reference or self.model)  # the policy at step 0 is the reference
        return made

    def _embedded(self, rows: Sequence[Tokenised], spec: recipe.Embeddings) -> Sequence[Tokenised]:
        """With embeddings of the prompts, before the policy is loaded; one process computes them, the others read them."""
        with self.console.status("embedding prompts"), self.accelerator.main_process_first():
            encoder = load_encoder(spec, self.settings.policy)
            encoder.model.to(self.accelerator.device)
            return embedded(rows, encoder)

    def _show_heading(self) -> None:
        """The run in a line."""
        objectives = " + ".join(str(objective) for objective in self.plan.objectives)
        size = f"{self.plan.steps} steps of {self.settings.train.batch_size} prompts"
        self.console.print(f"[bold]{escape(self.settings.name)}[/] · {escape(objectives)} · {size}", highlight=False)
        self.console.print(f"  model {self.plan.model}", highlight=False, soft_wrap=True, markup=False)

    def _folder(self, folder: Path | None) -> Path:
        """A new run folder, the same on every process."""
        if folder is None:
            base = Path(self.settings.track.folder) / f"{self.settings.name}-seed{self.settings.seed}"
            folder = broadcast_object_list([unused(base)])[0]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (folder / "evaluations").mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        return folder

    def _write_manifest(self) -> None:
        if not self.accelerator.is_main_process or (self.folder / "manifest.json").exists():
            return
        others = self._others()
        content = manifest(self.settings, self.accelerator, self.model, self.plan.model, self.data, others)
        # A recipe leaves defaults out, and another version may have other ones.
        content["objectives"] = [{"name": term.name, **vars(term.objective)} for term in self.trainer.terms]
        write_whole(self.folder / "manifest.json", json.dumps(content, indent=2, default=repr))

    def _others(self) -> dict[str, torch.nn.Module]:
        """The models beside the trained one: a reference of its own, and reward models."""
        found: dict[str, torch.nn.Module] = {}
        if self.reference is not None and self.reference.policy is not self.model:
            found["reference"] = self.reference.policy
        for what, feedback in self.source.feedback.items() if isinstance(self.source, Rollouts) else ():
            found |= {f"{what}: {name}": model for name, model in reward_models(feedback).items()}
        return found

    def _restore(self) -> int:
        """Load the last checkpoint of a resumed run; the number of steps behind it."""
        if not self.resumed:
            return 0
        found = checkpoints(self.folder / "checkpoints")
        if found:
            load_checkpoint(self.accelerator, found[-1])
        if self.accelerator.is_main_process:
            rewind(self.folder / "metrics.jsonl", self.trainer.done)
        self.console.print(f"resumed at step {self.trainer.done} of {self.plan.steps}", highlight=False)
        return self.trainer.done

    def _tracker(self) -> Tracker:
        if not self.accelerator.is_main_process:
            return Tracker([])
        places: list[Jsonl | WandbRun] = [Jsonl(self.folder / "metrics.jsonl")]
        if self.settings.track.wandb is not None:
            config, wandb = self.settings.model_dump(mode="json"), self.settings.track.wandb
            places.append(WandbRun(wandb, self.folder, wandb.name or self.folder.name, config))
        return Tracker(places)


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def saved_recipe(folder: Path, overrides: Sequence[str] = ()) -> recipe.Recipe:
    """The recipe of a run folder, with overrides.

    Raises:
        PrefoptError: there is none.
    """
    if not (folder / "recipe.yaml").is_file():
        raise PrefoptError(f"{folder} is no run folder: it has no recipe.yaml")
    return recipe.load_recipe(folder / "recipe.yaml", overrides)


def unfinished(settings: recipe.Recipe) -> Path:
    """The newest run folder of this name and seed that has not come to its end.

    Raises:
        PrefoptError: there is none.
    """
    base = Path(settings.track.folder)
    pattern = re.compile(re.escape(f"{settings.name}-seed{settings.seed}") + r"(-\d+)?$")
    folders = [f for f in base.iterdir() if pattern.match(f.name)] if base.is_dir() else []
    open_ones = [f for f in folders if (f / "recipe.yaml").is_file() and not (f / "summary.json").exists()]
    if not open_ones:
        raise PrefoptError(f"nothing to resume: no unfinished run of {settings.name} (seed {settings.seed}) in {base}/")
    return max(open_ones, key=lambda f: f.stat().st_mtime)


def _refuse_folder(folder: Path, resumed: recipe.Recipe | None) -> None:
    """A new run wants a new folder; a resumed one a folder of the same recipe that has not come to its end."""
    if resumed is None:
        if folder.exists() and any(folder.iterdir()):
            raise PrefoptError(
                f"{folder} is there already, and nothing is overwritten: name another, or resume it with --resume"
            )
        return
    if (folder / "summary.json").exists():
        raise PrefoptError(f"{folder} is finished: its results are in summary.json")
    if different := recipe.differences(saved_recipe(folder).model_dump(mode="json"), resumed.model_dump(mode="json")):
        raise PrefoptError(f"{folder} was run with another recipe; it differs in {', '.join(different)}")


def _numbers(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Flat, for trackers: the value under the metric's name, the interval's ends beside it."""
    flat: dict[str, float] = {}
    for name, e in estimates.items():
        flat |= {name: e.value, f"{name}/low": e.low, f"{name}/high": e.high}
    return flat


def _records(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: plain(asdict(e)) for name, e in estimates.items()}
