"""A vLLM server over HTTP: completions of token ids, adapters and weights (paths of vLLM 0.32)."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from prefopt.support.errors import PrefoptError

ADAPTER_START = (
    "start one with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK "
    "--logprobs-mode processed_logprobs`"
)
START = (
    "start one with `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --hf-overrides '{\"tie_word_embeddings\": false}' "
    "--logprobs-mode processed_logprobs`"
)
LOOK = "Its log says more; start it again as docs/vllm.md says, and go on with --resume"
REQUESTS = 64
"""At a time."""

SECONDS = 10
"""That a server may take to say that it is there."""


class VLLMServer:
    """A server that is there.

    Args:
        address: like http://localhost:8000.

    Attributes:
        base: what it calls the model that it was started with.
        positions: tokens of a prompt and its completion together, at most; None where it does not say.

    Raises:
        PrefoptError: nothing answers, or what answers is no vLLM server that is ready.
    """

    def __init__(self, address: str):
        self.address = address
        try:
            health = requests.get(f"{address}/health", timeout=SECONDS)
        except requests.RequestException as error:
            raise PrefoptError(f"no vLLM server at {address} ({_short(error)}): {START}") from error
        if health.status_code != 200:
            raise PrefoptError(
                f"{address} is no vLLM server that is ready: /health answers {health.status_code}. {LOOK}"
            )
        self.session = requests.Session()
        self.session.mount("http", HTTPAdapter(pool_maxsize=REQUESTS))
        with self.asked_to("list its model"):
            listed = self._json(self.session.get(f"{address}/v1/models", timeout=SECONDS))["data"][0]
            self.base, self.positions = str(listed["id"]), listed.get("max_model_len")

    def complete(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The choices that `/v1/completions` answers with."""
        with self.asked_to("write completions"):
            choices: list[dict[str, Any]] = self._post("/v1/completions", body)["choices"]
        return choices

    def settings(self) -> dict[str, Any]:
        """How it was started.

        Raises:
            PrefoptError: it does not say, because it was started without VLLM_SERVER_DEV_MODE=1.
        """
        response = self._get("/server_info?config_format=json")
        if response.status_code == 404:
            raise PrefoptError(f"the vLLM server {self.address} takes no weights: {START}")
        with self.asked_to("say how it was started"):
            settings: dict[str, Any] = self._json(response)["vllm_config"]
        return settings

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let it read an adapter from a folder, which it must see."""
        with self.asked_to("load the policy's adapter"):
            response = self.session.post(
                f"{self.address}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}
            )
            if response.status_code == 404 and "No adapter found" not in response.text:
                raise PrefoptError(f"the vLLM server {self.address} takes no adapters: {ADAPTER_START}")
            self._checked(response)

    def unload_adapter(self, name: str) -> None:
        """Let it forget an adapter. One that it does not know any more is no error: it may have been started again."""
        with suppress(requests.RequestException):
            self.session.post(f"{self.address}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=SECONDS)

    def reload(self, folder: Path) -> None:
        """Let it read all weights from a folder, which it must see, and forget what it has read with the former ones."""
        with self.asked_to("take over the policy's weights"):
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self.forget()

    def forget(self) -> None:
        """Let it forget what it keeps of prompts that it has read."""
        self._checked(self.session.post(f"{self.address}/reset_prefix_cache"))

    @contextmanager
    def asked_to(self, what: str) -> Iterator[None]:
        """Errors, which are of many kinds, as one sentence that names the server and what to do."""
        try:
            yield
        except (PrefoptError, ImportError):
            raise
        except requests.JSONDecodeError as error:
            raise PrefoptError(
                f"the vLLM server {self.address}, asked to {what}, answered with what is no JSON. {LOOK}"
            ) from error
        except requests.RequestException as error:
            raise PrefoptError(
                f"the vLLM server {self.address}, asked to {what}, did not answer ({_short(error)}). Is it still running? {LOOK}"
            ) from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            wrong = f"without {error}" if isinstance(error, KeyError) else f"with {_short(error)}"
            raise PrefoptError(f"the vLLM server {self.address}, asked to {what}, answered {wrong}. {LOOK}") from error
        except Exception as error:  # an error that it answered with, or of the client that sends weights between GPUs
            raise PrefoptError(f"the vLLM server {self.address} did not {what}: {_short(error)}. {LOOK}") from error

    def _get(self, path: str) -> requests.Response:
        with self.asked_to("say how it was started"):
            return self.session.get(f"{self.address}{path}", timeout=SECONDS)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._json(self.session.post(f"{self.address}{path}", json=body))

    def _json(self, response: requests.Response) -> Any:
        self._checked(response)
        reply = response.json()
        if isinstance(reply, dict) and reply.get("error"):
            raise RuntimeError(f"status {response.status_code} with an error inside, {reply['error']}")
        return reply

    @staticmethod
    def _checked(response: requests.Response) -> None:
        if not response.ok:
            raise RuntimeError(f"{response.status_code}, {response.text}")


def check_address(server: str, key: str) -> None:
    """Refuse what is no address of a server.

    Args:
        server: the address.
        key: of the recipe, for the message.

    Raises:
        PrefoptError: no http address, or the one under which OpenAI's clients ask.
    """
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PrefoptError(f"{key}: {server!r} is no address; write it like http://localhost:8000")
    if parts.path.rstrip("/").endswith("/v1"):
        raise PrefoptError(f"{key}: leave out /v1 at the end of {server}: weights go to other paths of a vLLM server")


def _short(error: Exception) -> str:
    """An error in a line; of a connection that was not made, what the system says of it."""
    if said := re.search(r"\[Errno -?\d+\] ([^\[\]()'\"<>]+)", str(error)):
        return said[1].strip()
    return " ".join(str(error).split())[:300].removesuffix(".") or type(error).__name__
