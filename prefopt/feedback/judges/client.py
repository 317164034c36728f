"""Requests to an OpenAI-compatible server: retries are counted, failures are explained, and the key is in no message."""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion

from prefopt.support.errors import PrefoptError

log = logging.getLogger(__name__)

Reply = ChatCompletion | Completion
RESUME = "What was answered is kept: put that right and run the same again."


class TooLongError(Exception):
    """The server cannot read a text of this length."""


class Client:
    """One server's HTTP interface, a context. Safe to use from several threads.

    The `openai` client tries again after 408, 409, 429, 5xx, time-outs and broken connections: after ½, 1, 2, … 8 seconds, each
    less up to a quarter by chance, or after what `Retry-After` says.

    Args:
        base_url: of the server.
        key_env: the environment variable that holds its key, read now; None or one that is not set sends none.
        timeout: seconds for one request.
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
                event_hooks={"request": [self._sending], "response": [self._received]}
            ),
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def chat(self, **body: Any) -> ChatCompletion:
        """One request to /chat/completions.

        Raises:
            PrefoptError: it was refused, or failed again and again.
            TooLongError: the server cannot read so much.
        """
        return self._asked(self._client.chat.completions.create, ChatCompletion, body)

    def complete(self, **body: Any) -> Completion:
        """One request to /completions; raises as `chat`."""
        return self._asked(self._client.completions.create, Completion, body)

    def _asked(self, create: Callable[..., Any], kind: type, body: dict[str, Any]) -> Any:
        # What the client raises holds the request and so the key: it must not become anything's __context__.
        try:
            reply: Any = create(**body)
        except openai.APIError as error:
            failure = self._explained(error)
        except (ValueError, TypeError) as error:  # no JSON, or not of this kind
            failure = self._error(f"answered what cannot be read ({type(error).__name__}). {self._where}")
        else:
            if isinstance(reply, kind) and getattr(reply, "choices", None):
                return reply
            failure = self._error(f"did not answer as OpenAI's does: {self._short(reply)}. {self._where}")
        raise failure

    def _explained(self, error: openai.APIError) -> Exception:
        """What a person can do about it."""
        message = self._short(_message(error))
        if isinstance(error, openai.APIStatusError):
            code = error.status_code
            if code in (400, 413, 422) and _is_too_long(error):
                return TooLongError(message)
            if code in (401, 403):
                return self._error(f"refuses the key ({code}): {message}. {self._about_key}")
            if code == 404:
                return self._error(f"has no such model or address (404): {message}. {self._where}")
            if code == 429:
                return self._error(
                    f"still limits requests (429) after {self._client.max_retries} retries: {message}. Lower `concurrency`, or pay "
                    f"for more. {RESUME}"
                )
            if code >= 500:
                return self._error(
                    f"still fails ({code}) after {self._client.max_retries} retries: {message}. {RESUME}"
                )
            return self._error(f"refuses the request ({code}): {message}")
        if isinstance(error, openai.APITimeoutError):
            return self._error(
                f"did not answer within {self._client.timeout:g} seconds, {self._client.max_retries + 1} times. "
                f"Raise `timeout`, or lower `concurrency`. {RESUME}"
            )
        if isinstance(error, openai.APIConnectionError):
            why = self._short(error.__cause__ or error)
            return self._error(
                f"is not there, after {self._client.max_retries} retries ({why}). Is it running? {RESUME}"
            )
        return self._error(f"cannot be understood: {message}. {self._where}")

    def _error(self, what: str) -> PrefoptError:
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
        self._last.status = response.status_code if response.status_code >= 400 else None


def read_key(key_env: str | None) -> str | None:
    """The key in the environment, if there is one.

    Raises:
        PrefoptError: it cannot be sent; does not say what it is.
    """
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise PrefoptError(f"what ${key_env} holds is no key: it has characters that no key has, a line break perhaps")
    return key or None


def _message(error: openai.APIError) -> str:
    """In the server's words: OpenAI's form, FastAPI's, or whatever there is."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    if isinstance(body, dict | list):
        body = json.dumps(body)
    return str(body or error.message)


def _is_too_long(error: openai.APIError) -> bool:
    """OpenAI and llama.cpp give a code, vLLM a sentence."""
    words = _message(error).lower()
    return error.code == "context_length_exceeded" or ("context" in words and ("length" in words or "window" in words))
