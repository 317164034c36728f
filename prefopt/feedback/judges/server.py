"""Any OpenAI-compatible server as the one who answers, through the `openai` client."""

import itertools
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from prefopt import recipe
from prefopt.feedback.judges import prompts, replies
from prefopt.feedback.judges.keys import AUTO, check_key, read_key, variable_for
from prefopt.feedback.judges.listed import label_logps, merged
from prefopt.feedback.judges.question import Answer, Question
from prefopt.feedback.judges.thinking import after_thinking, thinks_first
from prefopt.policy import find_model, load_tokenizer
from prefopt.support.downloads import is_awaited
from prefopt.support.errors import PrefoptError

if TYPE_CHECKING:
    from prefopt.feedback.judges.client import Client

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
SHORTEST = 5
"""Tokens in the shortest list that is asked for."""

NO_SYSTEM = re.compile(
    r"\((?:400|422|500)\S*\).*(?:\bsystem\b.*\b(?:role|turn|support|message)|roles must alternate)", re.IGNORECASE
)
"""How a server says that its model's chat template has no system turn."""
LIST_SECONDS = 10.0
"""For the list of models, which is asked for without retries."""


@dataclass(frozen=True)
class Server:
    """A model behind OpenAI's HTTP interface: OpenAI itself, vLLM, SGLang, llama.cpp, `transformers serve`, …

    Texts can be had of all of them, log-likelihoods of those that list the likeliest tokens: labels are looked up in the lists
    (`label_logps`). A label of several tokens takes further requests, each with the label's beginning given, and so a server that
    can be given one. What is asked first is asked alone, so that a server that cannot serve is found out once.

    Overload, failures of the server, time-outs and broken connections are tried again (`Client`); each retry is logged and counted.
    All else fails at once, but for a question that is too long for the server, or that it refuses for its content: it has no
    answer. What came to no end is none either (`Answer.missing`).

    Attributes:
        model: as the server knows it.
        base_url: usually ends in /v1.
        key_env: the environment variable with the key, which is kept in no field and no file. auto is OPENAI_API_KEY for OpenAI's
            own address and none for any other; None, or a variable that is not set, sends none. A provider's variable goes to that
            provider and to this machine.
        endpoint: chat gives the turns to the server's own chat template; completions gives one text, the turns line by line, or as
            `template` writes them.
        template: for completions: folder or hub id of a tokenizer whose chat template writes the turns.
        starts: how a chat server is given the beginning of an answer. ask: as a turn of the assistant, and a further turn that asks
            to go on; works everywhere, and labels lose their leading space. continue: by `continue_final_message` (vLLM, SGLang).
        top: tokens in a list; OpenAI gives at most 20 (completions: 5), vLLM as many as --max-logprobs.
        timeout: seconds for one request.
        retries: of one request.
        concurrency: requests at a time.
        extra: more fields of each request, {top_p: 0.9} perhaps; null takes one away.
        chat_template_kwargs: what the chat template takes beside the turns, {enable_thinking: false} perhaps.
        seen: what happened: requests, retries, unlisted (labels that no list had), unlistable (no first token), too_long, …
    """

    model: str
    base_url: str = OPENAI
    key_env: str | None = AUTO
    endpoint: Literal["chat", "completions"] = "chat"
    template: str | None = None
    starts: Literal["ask", "continue"] = "ask"
    top: Annotated[int, Field(gt=0)] = 20
    timeout: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 5
    concurrency: Annotated[int, Field(gt=0)] = 8
    extra: Mapping[str, Any] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that answers depend on. The address, too: two servers may call two models by one name."""
        names = ("model", "base_url", "endpoint", "template", "starts", "top", "extra")
        own = {"chat_template_kwargs": dict(self.chat_template_kwargs)} if self.chat_template_kwargs else {}
        return {"kind": "server", **{name: getattr(self, name) for name in names}, **own}

    def check(self) -> None:
        """Refuse an address that cannot be, and a key that is missing or that anybody could read on its way.

        Raises:
            PrefoptError: says what to do.
        """
        try:
            where = urlsplit(self.base_url)
            _ = where.port
        except ValueError as error:
            raise PrefoptError(f"server.base_url is no address: {self.base_url!r} ({error})") from None
        if where.username or where.password or where.query:
            raise PrefoptError(
                "server.base_url must hold neither password nor key, for it is written to manifests: put the key into an "
                f"environment variable, and name that: key_env, now {self.key_env}"
            )
        if where.scheme not in ("http", "https") or not where.hostname:
            raise PrefoptError(f"server.base_url must be like http://localhost:8000/v1, not {self.base_url!r}")
        if self.base_url == OPENAI and not read_key(self._key_env):
            raise PrefoptError(
                f"OpenAI wants a key: set ${self._key_env or 'OPENAI_API_KEY, and key_env to that name'}"
            )
        check_key(self._key_env, self.base_url)
        if self.template is not None:
            if self.endpoint == "chat":
                raise PrefoptError("server.template is for `endpoint: completions`: a chat server has its own")
            find_model((self.template,))

    def render(self, question: Question) -> str:
        """The question as text where completions are asked for; a chat's is written by the server."""
        if self.endpoint == "chat" or (self.template is not None and is_awaited(self.template)):
            return ""
        return prompts.text(question, self._tokenizer, self.chat_template_kwargs)

    def listed(self) -> str | None:
        """What the server lists about the model, as JSON; "" where it lists nothing, None where it is not there."""
        self.check()
        from prefopt.feedback.judges.client import Client  # with `openai`, whose import takes half a second

        with Client(self.base_url, self._key_env, min(self.timeout, LIST_SECONDS), 0, Counter()) as client:
            reply = client.listing()
        return None if reply is None else replies.listing_of(reply, self.model)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Answers as they come. After a failure no more is asked; what is under way is waited for and passed on.

        Raises:
            PrefoptError: the server refuses, gives no log-likelihoods, or fails again and again.
        """
        self.check()
        from prefopt.feedback.judges.client import Client

        with Client(self.base_url, self._key_env, self.timeout, self.retries, self.seen) as client:
            left = iter(enumerate(questions))
            if not self.seen["answered"] and (first := next(left, None)):
                yield first[0], self._answer(first[1], client)
            yield from self._together(left, client)

    def _together(self, left: Iterator[tuple[int, Question]], client: "Client") -> Iterator[tuple[int, Answer]]:
        failure: BaseException | None = None
        flying: dict[Future[Answer], int] = {}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            while True:
                while failure is None and len(flying) < self.concurrency and (one := next(left, None)):
                    flying[pool.submit(self._answer, one[1], client)] = one[0]
                if not flying:
                    break
                for done in wait(flying, return_when=FIRST_COMPLETED).done:
                    i = flying.pop(done)
                    if (error := done.exception()) is None:
                        yield i, done.result()
                    failure = failure or error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def _answer(self, question: Question, client: "Client") -> Answer:
        bill = Bill(client)
        try:
            answer = self._likelihoods(question, bill) if question.labels else self._text(question, bill)
        except replies.NoAnswerError as error:
            log.warning("%s has no answer to a question (%s): %s", self.base_url, error.why, error)
            answer = Answer(missing=error.why)
        except replies.MalformedError as error:
            failure = client.error(
                f"answers with {error}. Use `mode: generative`, or a server that follows OpenAI's form"
            )
            raise failure from None
        if answer.missing:
            self._count(answer.missing)
        self._count("answered")
        return replace(
            answer,
            calls=bill.calls,
            prompt_tokens=bill.prompt_tokens,
            completion_tokens=bill.completion_tokens,
            served=bill.served,
        )

    def _text(self, question: Question, bill: "Bill") -> Answer:
        sampled = {"seed": question.seed} if question.temperature else {}
        choice = self._request(
            question, bill, max_tokens=question.max_tokens, temperature=question.temperature, **sampled
        )
        if missing := replies.missing_of(choice):
            return Answer(missing=missing)
        written = replies.text_of(choice, self.endpoint == "chat")
        text = after_thinking(written)
        if text is None or (not text.strip() and (written.strip() or replies.has_thoughts(choice))):
            return Answer(missing="thinking")
        if not text.strip():
            return Answer(missing="empty")
        text = text if self._continues else prompts.unstarted(text, question.start)
        return Answer(text=text, cut_off=replies.is_cut_off(choice))

    def _likelihoods(self, question: Question, bill: "Bill") -> Answer:
        labels = tuple(map(self._plain, question.labels))

        def look(given: str) -> Mapping[str, float]:
            if given and not self._continues:
                self._refuse_unless_single(
                    [one for one in labels if one.startswith(given) and one != given], given, bill
                )
                return {}
            listed = self._listed(replace(question, start=question.start + given), bill)
            if listed is None:
                raise _UnlistableError
            self._single.update(one for one in labels if not given and one in listed)
            return listed

        try:
            logps = label_logps(labels, look)
        except _UnlistableError:  # the answer ended before it began, and llama.cpp then lists nothing
            self._count("unlistable")
            return Answer(missing="empty")
        if any(map(math.isnan, logps)):
            return Answer(missing="not_a_number")
        if missing := logps.count(float("-inf")):
            self._count("unlisted", missing)
        return Answer(logps)

    def _listed(self, question: Question, bill: "Bill") -> dict[str, float] | None:
        """The likeliest first tokens; None where there is no first token.

        llama.cpp lists nothing where the answer's end is drawn as its first token: it is then drawn again, twice at most, at a
        temperature that makes that less likely. And of tokens with one text it keeps the last log-prob, in the first one's place,
        which shows as disorder: a shorter list has no such token.
        """
        top = self.top
        for seed, temperature in enumerate((1.0, 2.0, 2.0)):
            pairs = self._list_of(question, bill, top, seed, temperature)
            while _is_in_disorder(pairs) and top > SHORTEST:
                top = max(top // 2, SHORTEST)
                pairs = self._list_of(question, bill, top, seed, temperature)
            if pairs:
                return merged((self._plain(token), logp) for token, logp in pairs)
        return None

    def _list_of(
        self, question: Question, bill: "Bill", top: int, seed: int, temperature: float
    ) -> list[tuple[str, float]]:
        """The list as it came, [] where there is none. The temperature is not 0: some servers list what it leaves."""
        chat = self.endpoint == "chat"
        asked: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
        drawn = {"max_tokens": 1, "temperature": temperature, "top_p": 1.0, "seed": seed}
        choice = self._request(question, bill, **drawn, **asked)
        if (missing := replies.missing_of(choice)) and missing != "unfinished":
            raise replies.NoAnswerError(missing, "the answer to be listed is none")
        pairs = replies.tops_of(choice, chat)
        if pairs is None:
            raise PrefoptError(
                f"the judge's server {self.base_url} gives no log-probs (`transformers serve` has none, nor have some of OpenAI's "
                "models): use `mode: generative`, or a server that does, such as vLLM or llama.cpp"
            )
        if replies.has_thoughts(choice) or (pairs and thinks_first(max(pairs, key=itemgetter(1))[0])):
            raise PrefoptError(
                f"the model behind the judge's server {self.base_url} thinks before it answers, so that its first tokens are no "
                "labels: switch that off (chat_template_kwargs: {enable_thinking: false}, where its template knows that), or use "
                "`mode: generative` with `verdict_tokens` enough for its thoughts"
            )
        return pairs

    def _refuse_unless_single(self, labels: Sequence[str], given: str, bill: "Bill") -> None:
        """A label that is not listed although its beginning is: improbable, or several tokens? Saying it shows which."""
        for label in labels:
            if label not in self._single:
                say = Question((("user", f"Write exactly this, and nothing else: {label}"),))
                if label not in (self._listed(say, bill) or {}):
                    raise PrefoptError(
                        f"the label {label!r} may be several tokens to {self.base_url}: {given!r} is one, and a chat cannot be "
                        "asked what follows it. Use labels of one token (1 to 9 rather than 1 to 10), `starts: continue` with a "
                        "server that continues a given answer (vLLM, SGLang), or `endpoint: completions`"
                    )
                self._single.add(label)

    def _request(self, question: Question, bill: "Bill", **settings: Any) -> Mapping[str, Any]:
        """The first choice of the reply."""
        body = {"model": self.model, **settings}
        if self.endpoint == "completions":
            reply = bill.client.complete(
                prompt=prompts.text(question, self._tokenizer, self.chat_template_kwargs), **self._with_extra(body)
            )
        else:
            goes_on = {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}}
            more = goes_on if question.start and self._continues else {}
            turns = prompts.messages(question, ask=not self._continues)
            reply = self._chat(turns, bill, self._with_extra(body | more))
        bill.add(reply)
        return replies.choice_of(reply)

    def _chat(self, turns: list[dict[str, str]], bill: "Bill", body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A chat; where the server's template has no system turn, its text goes before the first user's."""
        if self._no_system.is_set():
            return bill.client.chat(messages=prompts.without_system(turns), **body)
        try:
            return bill.client.chat(messages=turns, **body)
        except PrefoptError as error:
            if turns[0]["role"] != "system" or not NO_SYSTEM.search(str(error)):
                raise
        self._no_system.set()
        return bill.client.chat(messages=prompts.without_system(turns), **body)

    def _with_extra(self, body: dict[str, Any]) -> dict[str, Any]:
        """With the recipe's own fields, whatever they are."""
        usual = {name: value for name, value in body.items() if name not in self.extra}
        added = {name: value for name, value in self.extra.items() if value is not None}
        if self.chat_template_kwargs and self.endpoint == "chat":
            added = {"chat_template_kwargs": dict(self.chat_template_kwargs)} | added
        return usual | {"extra_body": usual.get("extra_body", {}) | added}

    def _plain(self, token: str) -> str:
        """Without leading space where an answer is asked for in a turn of its own, which begins with none."""
        return token if self._continues else token.lstrip()

    def _count(self, what: str, times: int = 1) -> None:
        with self._lock:
            self.seen[what] += times

    @property
    def _key_env(self) -> str | None:
        """The variable with the key for this address."""
        return variable_for(self.base_url) if self.key_env == AUTO else self.key_env

    @property
    def _continues(self) -> bool:
        return self.endpoint == "completions" or self.starts == "continue"

    @cached_property
    def _single(self) -> set[str]:
        """Labels that are known to be one token to this server."""
        return set()

    @cached_property
    def _no_system(self) -> threading.Event:
        """Set once the server has refused a system turn."""
        return threading.Event()

    @cached_property
    def _lock(self) -> Any:
        return threading.Lock()

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        if self.template is None:
            return None
        tokenizer = load_tokenizer(recipe.Policy(model=self.template))
        if not tokenizer.chat_template:
            raise PrefoptError(f"server.template: {self.template} has no chat template; without one, leave it out")
        return tokenizer


@dataclass
class Bill:
    """Requests for one answer, by whom and at what cost."""

    client: "Client"
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    served: str = ""

    def add(self, reply: Mapping[str, Any]) -> None:
        """One more; servers that count nothing add nothing."""
        read, written = replies.usage_of(reply)
        self.calls += 1
        self.prompt_tokens += read
        self.completion_tokens += written
        self.served = replies.served_of(reply)


def _is_in_disorder(pairs: Sequence[tuple[str, float]]) -> bool:
    """Whether a list does not descend. Its last may: that is what was drawn, wherever it belongs."""
    logps = [logp for _, logp in pairs[:-1]]
    return any(first < second for first, second in itertools.pairwise(logps))


class _UnlistableError(Exception):
    """There is no first token whose alternatives could be listed."""
