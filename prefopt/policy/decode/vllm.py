"""Drawing completions from a vLLM server, through TRL's client."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from prefopt.policy.decode.ends import end_tokens
from prefopt.policy.decode.sampler import DrawnTokens, padded
from prefopt.policy.policy import Policy
from prefopt.recipe import Recipe, Sampling
from prefopt.support.errors import PrefoptError
from prefopt.types import Sampled

START = (
    'start one with `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1`"
)
REQUESTS = 64
"""At a time."""


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
        PrefoptError: vLLM or TRL are not installed, or there is no server.
    """

    def __init__(self, server: str | None, accelerator: Accelerator):
        assert server is not None
        self.client: Any = _connect(server)
        self.accelerator = accelerator
        self.present: tuple[Any, int | None] = (None, None)  # whose weights the server has, and of which version
        if accelerator.is_main_process:
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
            PrefoptError: they are no plain language model's.
        """
        if version is not None and (policy, version) == self.present:
            return
        model = policy if isinstance(policy, Policy) else getattr(policy, "policy", None)
        if not isinstance(model, Policy) or model.has_adapter:
            raise PrefoptError("a vLLM server samples a policy without an adapter only; use the sampler `transformers`")
        if self.accelerator.is_main_process:
            self.client.update_model_params(model.causal)
            self.client.reset_prefix_cache()
        self.accelerator.wait_for_everyone()
        self.present = (policy, version)

    def __call__(
        self, model: Any, prompt_ids: Sequence[Sequence[int]], completions: int, settings: Sampling, seeds: Tensor
    ) -> Sampled:
        """Draw `completions` of each prompt, as `TransformersSampler` does, from the weights that `sync` gave to the server.

        Raises:
            PrefoptError: they are another model's.
        """
        if model is not self.present[0]:
            raise PrefoptError(
                "a vLLM server samples the policy alone; use the sampler `transformers` for other writers"
            )
        model = model if isinstance(model, Policy) else model.policy
        ends = end_tokens(model, settings.stop)

        def ask(prompt: Sequence[int], seed: int) -> list[DrawnTokens]:
            answer = self.client.generate(
                [list(prompt)],
                n=completions,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=settings.max_tokens,
                generation_kwargs={"seed": seed % 2**31, "stop_token_ids": ends},
            )
            drawn = zip(answer["completion_ids"], answer["logprobs"], strict=True)
            return [DrawnTokens(list(ids), [at[0] for at in logps]) for ids, logps in drawn]

        with ThreadPoolExecutor(REQUESTS) as pool:
            drawn = [one for group in pool.map(ask, prompt_ids, seeds.tolist()) for one in group]
        return padded(drawn, completions)


def _connect(server: str) -> Any:
    try:
        from trl.generation.vllm_client import VLLMClient

        return VLLMClient(base_url=server, connection_timeout=10)
    except ImportError as error:
        raise PrefoptError(
            f"source.rollouts.sampler: vllm needs TRL and vLLM ({error}): pip install 'prefopt-research[vllm]', or use "
            "source.rollouts.sampler=transformers"
        ) from error
    except ConnectionError as error:
        raise PrefoptError(f"no vLLM server at {server}: {START}") from error
