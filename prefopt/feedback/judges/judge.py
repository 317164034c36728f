"""Feedback by a language model that is shown a rubric."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import Accelerator
from pydantic import Field

from prefopt.feedback.judges.asking import AnswerFormat, Request
from prefopt.feedback.judges.generative import Generative
from prefopt.feedback.judges.local import Local, TrainedPolicy
from prefopt.feedback.judges.memory import Budget, Memory
from prefopt.feedback.judges.pairs import Average, Pairwise
from prefopt.feedback.judges.points import Expected, Pointwise
from prefopt.feedback.judges.question import Answer, Backend, Question, Rendering, Serving, in_order
from prefopt.feedback.judges.rubric import Rubric
from prefopt.feedback.judges.rubric_file import load_rubric
from prefopt.feedback.judges.server import Server
from prefopt.feedback.judges.texts import transcripts
from prefopt.feedback.judges.trust import Bounds, Strangers, check_report
from prefopt.policy import Policy
from prefopt.support.plugins import make
from prefopt.types import Completion, Prompt, Verdict

Mode = Pairwise | Pointwise | Expected | Generative
Count = Annotated[int, Field(gt=0)]
IN_TURN = threading.Lock()
"""Held while a judge prefetches: judges that share a server must not ask more at a time than its `concurrency`."""

SELF = "self"
"""As a judge's model: the policy that is being trained."""


@dataclass(frozen=True)
class Judge:
    """Scores [B, K] and P(y_i beats y_j) [B, K, K] by a language model that is shown a rubric.

    Modes, with their formulas in docs/judges.md: `pairwise` (likelihoods of two labels, in both orders), `pointwise` (margin
    between the best and the worst of several label words), `expected` (expected score under the likelihoods of 1 to 10, in
    [−1, 1]), and `generative` (a verdict that is written, for servers without likelihoods).

    Completions that are empty, verdicts that are malformed and refusals are no verdict (NaN) and are counted in each prompt's
    note, with what the questions cost, rationales, the mass outside of the labels, and how a pairwise judge depends on the order.

    Attributes:
        rubric: the templates themselves, as a section (docs/judges.md), or a YAML file of them, the name of one that
            comes with prefopt, or `package:file`.
        mode: of judging.
        model: a local model: folder, run folder or hub id; of several, the first that is on disk; `self` is the policy that is
            being trained, as it is at the time (self-rewarding).
        server: in its place, a server: the fields of `Server`.
        backend: in the place of both, anything that answers; from Python only.
        average: of a pair's two orders: their probabilities, their logits, or none, which asks one order only.
        labels: in place of the rubric's.
        thought: let it write a rationale before each verdict.
        thought_tokens: of the longest rationale.
        verdict_tokens: of the longest written verdict.
        temperature: of what is written.
        samples: verdicts of each question, averaged, where something is written.
        scale: of a pointwise judge's preference, σ(scale · difference).
        seed: of what is written.
        tokenizer: of the local model; None is its own.
        template: whether the local model's chat template writes the turns, where it has one; false makes plain text of them.
        dtype: of the local model's weights.
        batch_size: questions that the local model reads together.
        remote_code: allow the local model's repository to run its own code.
        chat_template_kwargs: what its chat template takes beside the turns: {enable_thinking: false} switches thinking off where
            the template knows that. A server has a field of its own.
        cache: folder in which answers are kept, for all runs. None is one below $PREFOPT_CACHE for a server's, and no folder at all
            for a local model's, which cost nothing but time.
        budget: what a run may spend: the fields of `Budget`, calls and tokens; None sets no limit.
        report: of this very judge, as `prefopt evaluate` wrote it; without one that keeps `require`, nothing is asked.
        require: bounds of the report's estimates, `{auc: [0.7, null]}`, which whole intervals must keep.
        accelerator: knows the device; None finds it.
        policy: the policy that is being trained, for `model: self`.

    Raises:
        ValueError: fields that contradict one another.
    """

    rubric: str | Mapping[str, Any]
    mode: Literal["pairwise", "pointwise", "expected", "generative"]
    model: str | tuple[str, ...] | None = None
    server: Mapping[str, Any] | None = None
    backend: Backend | None = field(default=None, repr=False)
    average: Average = "probabilities"
    labels: tuple[str, ...] = ()
    thought: bool = False
    thought_tokens: Count = 256
    verdict_tokens: Count = 16
    temperature: Annotated[float, Field(ge=0)] = 0.0
    samples: Count = 1
    scale: Annotated[float, Field(gt=0)] = 1.0
    seed: int = 0
    tokenizer: str | None = None
    template: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    batch_size: Count = 32
    remote_code: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cache: str | None = None
    budget: Mapping[str, int] | None = None
    report: str | None = None
    require: Mapping[str, Bounds] = field(default_factory=dict)
    accelerator: Accelerator | None = field(default=None, repr=False, compare=False)
    policy: Policy | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = [name for name in ("model", "server", "backend") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of model, server and backend, not {' and '.join(given) or 'none'}")
        if self.model == SELF and (self.cache or self.budget or self.report):
            raise ValueError("a judge that changes as it learns (model: self) has no cache, no budget and no report")
        if self.chat_template_kwargs and self.model is None:
            raise ValueError(
                "chat_template_kwargs are of a local model; for a server they stand in server: {chat_template_kwargs: …}"
            )
        if self.require and self.report is None:
            raise ValueError("require sets bounds on a report of the judge: name the file in report")
        if self.samples != 1 and not (self.temperature and (self.thought or self.mode == "generative")):
            raise ValueError(
                "several samples of an answer are all the same unless something is written (mode: generative, or thought: true) "
                "at a temperature above 0"
            )

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Scores [B, K] and preference [B, K, K].

        Raises:
            PrefoptError: the rubric shows a column that is not there, or the backend cannot go on.
        """
        for thread in self._threads:  # what was asked ahead is remembered by then
            thread.join()
        self._threads.clear()
        self._failed.clear()
        verdict = self.how.judge(
            Request(self.text, self._answer_format, self._answers, prompts, transcripts(completions), rows)
        )
        if self.report is not None:
            self._strangers.note(self.models)
        return verdict

    @property
    def moves(self) -> bool:
        """Whether it is the policy that is being trained."""
        return self.model == SELF

    @property
    def prefetches(self) -> bool:
        """Whether somebody else answers, and there is a `Memory`."""
        return self.server is not None

    def prefetch(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Ask a server now, in the background, what it is to be asked about these; whoever calls the judge later waits for it.

        What goes wrong is left to that call, which asks once more; until then no more is asked ahead.
        """
        assert isinstance(self.asked, Memory)
        prefetch = self.asked.prefetch

        def ask() -> None:
            with IN_TURN:
                if self._failed.is_set():
                    return
                try:
                    self.how.judge(
                        Request(self.text, self._answer_format, prefetch, prompts, transcripts(completions), rows)
                    )
                except Exception:  # whatever it is, the call meets it again
                    self._failed.set()

        # A daemon, so that at the end of a program nobody waits for more than the requests that are under way.
        self._threads.append(threading.Thread(target=ask, name="judge ahead", daemon=True))
        self._threads[-1].start()

    def check(self) -> None:
        """Refuse a rubric that does not fit the mode, and a model or server that cannot serve; loads nothing.

        Raises:
            PrefoptError: says which file or field, and what to do.
        """
        labels = self.how.labels(self.text, self._answer_format)
        self.text.check(self.how.shows, labels, self.thought)
        self.asked.check()
        self._try_template(labels)
        if self.report is not None:
            check_report(self.report, self.identity, self.require)

    def _try_template(self, labels: tuple[str, ...]) -> None:
        """Render one question, where a chat template is at hand."""
        if isinstance(self._source, Rendering):
            turns = self.text.outline(labels, self.thought)
            wanted = () if self.how.written else labels
            self._source.render(Question(turns, self.text.start("rationale" if self.thought else None), wanted))
            if self.thought:
                self._source.render(Question(turns))

    @property
    def local(self) -> Local | None:
        """Its local model; None where a server or something else answers, or the policy itself."""
        return self._source if isinstance(self._source, Local) else None

    def longest_question(self, prompt: Prompt, completions: Sequence[Completion], row: Mapping[str, Any]) -> int:
        """Tokens of the longest question about these completions, with room for its answer, to its local model.

        Asks nobody, so what follows from an answer is left out.

        Raises:
            PrefoptError: the rubric shows a column that is not there.
        """
        assert self.local is not None
        longest, tokens = 0, self.local.tokens

        def count(questions: Sequence[Question]) -> list[Answer]:
            nonlocal longest
            longest = max(longest, *map(tokens, questions)) if questions else longest
            return [Answer(missing="too_long") for _ in questions]

        texts = transcripts([completions])
        self.how.judge(Request(self.text, self._answer_format, count, [prompt], texts, [row]))
        return longest

    def load(self) -> None:
        """Check, and load the local model where it will be asked: in the main process."""
        self.check()
        if isinstance(self._source, TrainedPolicy):
            self._source.the_policy()
        if self.local is not None and (self.accelerator is None or self.accelerator.is_main_process):
            _ = self.local.reading

    @property
    def spent(self) -> Mapping[str, float]:
        """What its answers have cost so far, where that is counted: by a `Memory`."""
        if not isinstance(self.asked, Memory):
            return {}
        several = len(self.models)
        return dataclasses.asdict(self.asked.spent) | ({"models": several} if several > 1 else {})

    @property
    def models(self) -> Sequence[str]:
        """What a server has said of every model that answered so far; empty where no server answers."""
        heard = self.asked.models if isinstance(self.asked, Memory) else None
        return () if heard is None else tuple(heard.all)

    @property
    def answerer(self) -> dict[str, Any]:
        """Who answers, and, of a server, what it lists of its model now: None where it is not there."""
        if self.moves:
            return {"kind": SELF}
        listed = {"listed": self._source.listed()} if isinstance(self._source, Serving) else {}
        return dict(self.asked.identity) | listed

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that its verdicts depend on, but for the seed of what is written."""
        return {
            "rubric": self.text.fingerprint,
            "mode": self.mode,
            "average": self.average,
            "scale": self.scale,
            "manner": {
                name: value for name, value in dataclasses.asdict(self._answer_format).items() if name != "seed"
            },
            "answers": dict(self.asked.identity),
        }

    @cached_property
    def text(self) -> Rubric:
        """The rubric, read once: editing its file does not change a reward in the middle of a run."""
        return load_rubric(self.rubric)

    @cached_property
    def how(self) -> Mode:
        """The mode with its fields."""
        if self.mode == "generative":
            pair = self.text.compares
            return Generative(self.average, Pairwise.shows if pair else Pointwise.shows)
        if self.mode == "pairwise":
            return Pairwise(self.average)
        return Pointwise(self.scale) if self.mode == "pointwise" else Expected()

    @cached_property
    def asked(self) -> Backend:
        """Who answers: a backend, or a `Memory` before it where answers are kept or paid for."""
        if self.cache is None and self.budget is None and self.server is None:
            return self._source
        folder = None if self.cache is None else Path(self.cache).expanduser()
        return Memory(self._source, folder, make("budget", self.budget or {}, known={"budget": Budget}))

    @cached_property
    def _source(self) -> Backend:
        if self.backend is not None:
            return self.backend
        if self.server is not None:
            return make("server", self.server, known={"server": Server})
        if self.model == SELF:
            return TrainedPolicy(self.policy, self.batch_size, self.template, self.chat_template_kwargs)
        names = (
            "model",
            "tokenizer",
            "template",
            "dtype",
            "batch_size",
            "remote_code",
            "chat_template_kwargs",
            "accelerator",
        )
        return Local(**{name: getattr(self, name) for name in names})

    @cached_property
    def _strangers(self) -> Strangers:
        """Of its report."""
        assert self.report is not None
        return Strangers(self.report)

    @cached_property
    def _threads(self) -> list[threading.Thread]:
        """That ask ahead."""
        return []

    @cached_property
    def _failed(self) -> threading.Event:
        """Set when one of them did."""
        return threading.Event()

    def _answers(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Answers in the order of the questions."""
        return in_order(self.asked.ask(questions))

    @property
    def _answer_format(self) -> AnswerFormat:
        names = {f.name for f in dataclasses.fields(AnswerFormat)}
        return AnswerFormat(**{name: getattr(self, name) for name in names})
