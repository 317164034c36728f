"""Requests to an OpenAI-compatible server: retries are counted, failures are explained, and the key is in no message.

A reply is what it says, whatever its status: an error that comes with status 200, as routers send it, is the error that it names.
"""

import importlib
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import openai

from prefopt.feedback.judges.keys import is_openai, read_key
from prefopt.feedback.judges.replies import MalformedError, NoAnswerError, choice_of
from prefopt.support.errors import PrefoptError

log = logging.getLogger(__name__)

HTTP: Any = importlib.import_module("httpx2" if int(openai.__version__.partition(".")[0]) >= 3 else "httpx")
"""The HTTP library that this version of the `openai` client is built on: httpx or httpx2."""

RESUME = "What was answered is kept: put that right and run the same again."
LARGEST = 16 * 2**20
"""Bytes of the longest reply that is read."""

FILTERED = re.compile(
    r"content[ _-]?(?:filter|management|policy|moderation)|responsibleaipolicy|invalid_prompt|prohibited_content|moderation"
    r"|\b(?:was|been|is|were) (?:flagged|filtered)|violat\w+ (?:our |the )?(?:usage|content|safety) polic",
    re.IGNORECASE,
)
"""How hosted models say that they refuse a text for its content: Azure, OpenAI, OpenRouter, Google and those that copy them."""


class Client:
    """One server's HTTP interface, a context. Safe to use from several threads.

    The `openai` client tries again after 408, 409, 429, 5xx, time-outs and broken connections: after ½, 1, 2, … 8 seconds, each
    less up to a quarter by chance, or after what `Retry-After` says. Redirects are not followed: neither the key nor a text goes to
    an address that the recipe does not name.

    Args:
        base_url: of the server.
        key_env: the environment variable that holds its key, read now; None or one that is not set sends none.
        timeout: seconds for one request, to the last byte of its reply.
        retries: of one request.
        seen: counts `requests` that were sent and `retries` among them.
    """

    def __init__(self, base_url: str, key_env: str | None, timeout: float, retries: int, seen: Counter[str]):
        self.name, self.key_env, self.seen = base_url, key_env, seen
        self._key = read_key(key_env)
        self._lock = threading.Lock()
        self._last = threading.local()
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=retries,
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [self._sending], "response": [self._received]}, follow_redirects=False
            ),
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def chat(self, **body: Any) -> Mapping[str, Any]:
        """One request to /chat/completions: the reply as it is in JSON, with a choice.

        Raises:
            PrefoptError: it was refused, or failed again and again.
            NoAnswerError: the server cannot read so much, or refuses this text for its content.
        """
        return self._asked(self._client.chat.completions.with_raw_response.create, body)

    def complete(self, **body: Any) -> Mapping[str, Any]:
        """One request to /completions; as `chat`."""
        return self._asked(self._client.completions.with_raw_response.create, body)

    def listing(self) -> Any:
        """What /models says, {} where there is no such list; None where the server is not there."""
        try:
            reply = self._client.models.with_raw_response.list()
            return json.loads(reply.content)
        except openai.APIConnectionError:
            return None
        except (openai.APIError, _TooLargeError, ValueError, TypeError):
            return {}

    def _asked(self, create: Callable[..., Any], body: dict[str, Any]) -> Mapping[str, Any]:
        # What the client raises holds the request and so the key: it must not become anything's __context__.
        failure: Exception
        reply: Any = None
        try:
            reply = json.loads(create(**body).content)
            choice_of(reply)
        except openai.APIError as error:
            failure = self._explained(error, body)
        except MalformedError as error:
            failure = self.error(
                f"did not answer as OpenAI's does ({error}): {self._short(json.dumps(reply))}. {self._where}"
            )
        except _TooLargeError:
            failure = self.error(f"answered with more than {LARGEST // 2**20} MiB. {self._where}")
        except (ValueError, TypeError) as error:  # no JSON
            failure = self.error(f"answered what cannot be read ({type(error).__name__}): it is no JSON. {self._where}")
        else:
            return dict(reply)
        raise failure

    def _explained(self, error: openai.APIError, body: Mapping[str, Any]) -> Exception:
        """What a person can do about it."""
        message = self._short(_message(error))
        if isinstance(error, openai.APIStatusError):
            return self._refused(error, message, body)
        if isinstance(error, openai.APITimeoutError):
            return self.error(
                f"did not answer within {self._client.timeout:g} seconds, {self._client.max_retries + 1} times. "
                f"Raise `timeout`, or lower `concurrency`. {RESUME}"
            )
        if isinstance(error, openai.APIConnectionError):
            why = self._short(error.__cause__ or error)
            return self.error(
                f"is not there, after {self._client.max_retries} retries ({why}). Is it running? {RESUME}"
            )
        return self.error(f"cannot be understood: {message}. {self._where}")

    def _refused(self, error: openai.APIStatusError, message: str, body: Mapping[str, Any]) -> Exception:
        code, within = error.status_code, error.response.extensions.get("within", "")
        if code in (400, 413, 422) and _is_too_long(error):
            return NoAnswerError("too_long", message)
        if code in (400, 403, 422, 451) and _is_filtered(error):
            return NoAnswerError("filtered", message)
        if 300 <= code < 400:
            to = str(error.response.headers.get("location", "nowhere")).partition("?")[0]
            return self.error(
                f"sends on to {self._short(to)} ({code}), and neither a key nor a text is sent there: if that is right, name that "
                "address as `base_url`"
            )
        if code in (401, 403):
            return self.error(f"refuses the key ({code}{within}): {message}. {self._about_key}")
        if code == 404:
            return self.error(f"has no such model or address (404): {message}. {self._where}")
        if code == 429:
            return self.error(
                f"still limits requests (429{within}) after {self._client.max_retries} retries: {message}. Lower "
                f"`concurrency`, or pay for more. {RESUME}"
            )
        if code >= 500:
            look = f" {self._where}" if "choices" in within else ""
            return self.error(
                f"still fails ({code}{within}) after {self._client.max_retries} retries: {message}.{look} {RESUME}"
            )
        return self.error(f"refuses the request ({code}{within}): {message}. {_advice(body)}")

    def error(self, what: str) -> PrefoptError:
        """Of this server."""
        return PrefoptError(f"the judge's server {self.name} {what}")

    @property
    def _where(self) -> str:
        return "Look at `model` and `base_url`, which usually ends in /v1."

    @property
    def _about_key(self) -> str:
        if self.key_env is None:
            return "None was sent: name the environment variable that holds it, `key_env`"
        return f"It is {'that of' if self._key else 'missing: set'} ${self.key_env}"

    def _short(self, message: Any) -> str:
        """The beginning of the message, without the key, which some servers repeat."""
        words = " ".join(str(message).split())
        if self._key:
            words = words.replace(self._key, "***")
        return words[:300]

    # Every request passes here, and every reply.

    def _sending(self, request: Any) -> None:
        self._last.until = time.monotonic() + request.extensions["timeout"]["read"]
        _without_strangers(request.headers, request.url.host, self._key)
        again = int(request.headers.get("x-stainless-retry-count", "0"))
        why = getattr(self._last, "status", None)
        self._last.status = None
        with self._lock:
            self.seen["requests"] += 1
            self.seen["retries"] += bool(again)
        if again:
            after = f"after status {why}" if why else "after no answer"
            log.warning("judge's server %s: retry %d of %d %s", self.name, again, self._client.max_retries, after)

    def _received(self, response: Any) -> None:
        response.stream = _Bounded(response.stream, self._last.until)
        response.read()
        if response.is_success and (within := _error_within(response.content)):
            response.status_code, response.extensions["within"] = within
        self._last.status = response.status_code if response.status_code >= 400 else None


class _TooLargeError(Exception):
    """A reply without end."""


class _Bounded(HTTP.SyncByteStream):
    """A reply that is read until a time, and not further than `LARGEST`."""

    def __init__(self, stream: Any, until: float):
        self._stream, self._until = stream, until

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            if size > LARGEST:
                raise _TooLargeError
            if time.monotonic() > self._until:
                raise HTTP.ReadTimeout("the reply did not come to its end in time")
            yield part

    def close(self) -> None:
        self._stream.close()


def _without_strangers(headers: Any, host: str, key: str | None) -> None:
    """Leave out of a request what the client adds from the environment, and what is for OpenAI alone at any other address."""
    names = [] if is_openai(host) else ["openai-organization", "openai-project"]
    custom = os.environ.get("OPENAI_CUSTOM_HEADERS", "") if names else ""
    for name in [
        *names,
        *(line.partition(":")[0].strip() for line in custom.splitlines()),
        *([] if key else ["authorization"]),
    ]:
        if name and name in headers and not (key and name.lower() == "authorization"):
            del headers[name]


def _error_within(content: bytes) -> tuple[int, str] | None:
    """The status that a reply with status 200 should have had, and why: of the error in it, or 503 where it has no choices yet."""
    try:
        reply = json.loads(content)
    except ValueError:
        return None
    if not isinstance(reply, dict) or "data" in reply:
        return None
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = reply.get("error") or (first.get("error") if isinstance(first, dict) else None)
    if error:
        code = str(error.get("code")) if isinstance(error, dict) else ""
        known = code.isdigit() and 400 <= int(code) < 600
        return (
            int(code) if known else 400 if _is_about_content(error) else 502
        ), ", with status 200 and an error inside"
    return (503, ", with status 200 and no `choices`") if choices in (None, []) else None


def _message(error: openai.APIError) -> str:
    """In the server's words: OpenAI's form, FastAPI's, or whatever there is."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    if isinstance(body, dict | list):
        body = json.dumps(body)
    return str(body or error.message)


def _is_filtered(error: openai.APIError) -> bool:
    """Whether this text was refused for its content."""
    return _is_about_content(error.body) or bool(FILTERED.search(str(error.code)))


def _is_about_content(body: Any) -> bool:
    """By what the server says itself: some repeat the text that they were asked about, under other names."""
    if not isinstance(body, dict):
        return isinstance(body, str) and bool(FILTERED.search(body))
    said = [body.get(name) for name in ("code", "type", "message", "status", "innererror", "metadata")]
    return any(one and FILTERED.search(json.dumps(one, default=str)) for one in said)


def _advice(body: Mapping[str, Any]) -> str:
    """What to leave out of a request that a server does not understand."""
    if "continue_final_message" in body.get("extra_body", {}):
        return (
            "If it does not know `continue_final_message`: `starts: ask` asks for the rest of an answer in a turn of its own, and "
            "`endpoint: completions` needs neither"
        )
    return "A field that it does not know is left out by `extra`: {seed: null}"


def _is_too_long(error: openai.APIError) -> bool:
    """OpenAI and llama.cpp give a code, vLLM a sentence."""
    words = _message(error).lower()
    return error.code == "context_length_exceeded" or ("context" in words and ("length" in words or "window" in words))
