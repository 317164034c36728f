"""Drawing completions from a vLLM server, through TRL's client."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from accelerate import Accelerator
from torch import Tensor

from prefopt.policy.decode.drawing import DrawnTokens
from prefopt.policy.decode.ends import end_tokens
from prefopt.policy.decode.sampler import padded
from prefopt.policy.parallel import ROUNDING
from prefopt.policy.policy import Policy
from prefopt.recipe import Recipe, Sampling
from prefopt.support.errors import PrefoptError
from prefopt.types import Sampled

START = (
    'start one with `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1`"
)
LOOK = f"Its log says more; {START}, and go on with --resume"
REQUESTS = 64
"""At a time."""

SECONDS = 10
"""That a server may take to say that it is there."""


class VLLMSampler:
    """The `Sampler` that asks a vLLM server, which has the policy's weights since the last `sync` (TRL 1.16's `VLLMClient`).

    Every prompt is a request with a seed of its own. vLLM's kernels make no promise that a completion is the same whatever else is
    in flight, so unlike with `TransformersSampler` it may depend on its companions. Its log-probs are at the temperature; with
    top-p or top-k they are of the truncated distribution. What differs from the policy's own is logged (`rollouts/sampler_kl`)
    and can be corrected (`tis`). Needs a GPU; tested here against a stand-in for the server only.

    Args:
        server: its address.
        accelerator: knows the processes; the main one sends the weights.

    Raises:
        PrefoptError: vLLM or TRL are not installed, there is no server, or it cannot be given weights.
    """

    def __init__(self, server: str | None, accelerator: Accelerator):
        assert server is not None
        self.server = server.rstrip("/")
        self.client: Any = _connect(self.server)
        self.accelerator = accelerator
        self.present: tuple[Any, int | None] = (None, None)  # whose weights the server has, and of which version
        if accelerator.is_main_process:
            with _explained(self.server, "make a connection for weights"):
                self.client.init_communicator(accelerator.device)

    @classmethod
    def refuses(cls, settings: Any) -> str | None:
        """A server has the weights of one model, whole: no adapter, and no second model that writes beside it."""
        if settings.policy is not None and settings.policy.adapter is not None:
            return "a vLLM server samples a policy without an adapter only: leave out policy.adapter, or use `transformers`"
        if isinstance(settings, Recipe) and (others := {"reference", "mixture"} & {*settings.source.writers}):
            return f"a vLLM server has the policy's weights alone, and source.writers has {', '.join(sorted(others))}"
        return None

    def sync(self, policy: Any, version: int | None) -> None:
        """Give the server the weights of a policy, or of a reference.

        Raises:
            PrefoptError: they are no plain language model's, or the server did not take them.
        """
        if version is not None and (policy, version) == self.present:
            return
        model = policy if isinstance(policy, Policy) else getattr(policy, "policy", None)
        if not isinstance(model, Policy) or model.has_adapter:
            raise PrefoptError("a vLLM server samples a policy without an adapter only; use the sampler `transformers`")
        if self.accelerator.is_main_process:
            with _explained(self.server, "take over the policy's weights"):
                self.client.update_model_params(model.causal)
                self.client.reset_prefix_cache()
        self.accelerator.wait_for_everyone()
        self.present = (policy, version)

    def __call__(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Sampling, seeds: Tensor
    ) -> Sampled:
        """Draw `completions` of each prompt, as `TransformersSampler` does, from the weights that `sync` gave to the server.

        Raises:
            PrefoptError: they are another model's, or the server gave no answer, or none that a model can have written.
        """
        if model is not self.present[0]:
            raise PrefoptError(
                "a vLLM server samples the policy alone; use the sampler `transformers` for other writers"
            )
        model = model if isinstance(model, Policy) else model.policy
        ends = end_tokens(model, settings.stop)

        vocabulary = model.causal.get_input_embeddings().num_embeddings

        def ask(prompt: Sequence[int], seed: int) -> list[DrawnTokens]:
            with _explained(self.server, "write completions"):
                answer = self.client.generate(
                    [list(prompt)],
                    n=completions,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=settings.top_k,
                    max_tokens=settings.max_tokens,
                    generation_kwargs={"seed": seed % 2**31, "stop_token_ids": ends},
                )
                return _drawn(answer, completions, settings.max_tokens, vocabulary)

        with ThreadPoolExecutor(REQUESTS) as pool:
            drawn = [one for group in pool.map(ask, prompt_ids, seeds.tolist()) for one in group]
        return padded(drawn, completions)


def _drawn(answer: Mapping[str, Any], completions: int, most: int, vocabulary: int) -> list[DrawnTokens]:
    """The completions of a server's answer to one prompt, each with a log-prob for each of its tokens.

    Raises:
        ValueError: another number of completions, tokens or log-probs than was asked for, or some that no model can have given.
    """
    every, given = answer["completion_ids"], answer["logprobs"]
    if len(every) != completions or given is None or len(given) != completions:
        raise ValueError(f"{len(every)} completions with {len(given or ())} lists of log-probs, not {completions}")
    drawn = [DrawnTokens(list(ids), [at[0] for at in logps]) for ids, logps in zip(every, given, strict=True)]
    for one in drawn:
        logps = one.logps or []
        if not 1 <= len(one.tokens) <= most or len(logps) != len(one.tokens):
            raise ValueError(
                f"{len(one.tokens)} tokens with {len(logps)} log-probs, where 1 to {most} were to be written"
            )
        if foreign := [token for token in one.tokens if not 0 <= token < vocabulary]:
            raise ValueError(f"the token {foreign[0]}, which the policy, with {vocabulary} tokens, does not have")
        # TRL's client makes None of NaN. −∞ would say that a token which was drawn cannot be.
        if wrong := [logp for logp in logps if logp is None or not -math.inf < logp <= ROUNDING]:
            raise ValueError(
                f"a log-prob of {'NaN' if wrong[0] is None else wrong[0]}, and every one is finite and at most 0"
            )
    return drawn


@contextmanager
def _explained(server: str, what: str) -> Iterator[None]:
    """Errors of TRL's client, which are of many kinds, as one sentence that names the server and what to do."""
    try:
        yield
    except (PrefoptError, ImportError):
        raise
    except requests.JSONDecodeError as error:
        raise PrefoptError(
            f"the vLLM server {server}, asked to {what}, answered with what is no JSON. {LOOK}"
        ) from error
    except requests.RequestException as error:
        raise PrefoptError(
            f"the vLLM server {server}, asked to {what}, did not answer ({_short(error)}). Is it still running? {LOOK}"
        ) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        wrong = f"without {error}" if isinstance(error, KeyError) else f"with {_short(error)}"
        raise PrefoptError(f"the vLLM server {server}, asked to {what}, answered {wrong}. {LOOK}") from error
    except Exception as error:  # what the client makes of a status, or of a server that was started without a setting
        raise PrefoptError(f"the vLLM server {server} did not {what}: {_short(error)}. {LOOK}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].removesuffix(".") or type(error).__name__


def _refuse_errors(response: requests.Response, *_: Any, **__: Any) -> None:
    """Raise for an error that comes with status 200."""
    if not response.ok or "json" not in response.headers.get("content-type", ""):
        return
    reply = response.json()
    if isinstance(reply, dict) and reply.get("error"):
        raise RuntimeError(f"status 200 with an error inside, {reply['error']}")


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


def _connect(server: str) -> Any:
    """TRL's client of a server that is there."""
    try:
        # The client itself would ask for ever a server that answers, but not with 200.
        health = requests.get(f"{server}/health", timeout=SECONDS)
    except requests.RequestException as error:
        raise PrefoptError(f"no vLLM server at {server} ({_short(error)}): {START}") from error
    if health.status_code != 200:
        raise PrefoptError(f"{server} is no vLLM server that is ready: /health answers {health.status_code}. {LOOK}")
    try:
        from trl.generation.vllm_client import VLLMClient

        with _explained(server, "list its model"):
            client = VLLMClient(base_url=server, connection_timeout=SECONDS)
    except ImportError as error:
        raise PrefoptError(
            f"source.rollouts.sampler: vllm needs TRL and vLLM ({error}): pip install 'prefopt-research[vllm]', or use "
            "source.rollouts.sampler=transformers"
        ) from error
    client.session.hooks["response"].append(_refuse_errors)
    return client
