"""A server's log-probs against a trainer's, and its speed against the embedded sampler's.

python experiments/vllm/measure.py logps|speed --server http://127.0.0.1:8123 [--dtype bfloat16] [--adapter]
"""

import argparse
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from workload import prompts

from prefopt.policy import Policy, load_policy, load_tokenizer
from prefopt.policy.decode.sampler import TransformersSampler
from prefopt.policy.decode.vllm import VLLMSampler
from prefopt.recipe import Policy as PolicySection
from prefopt.recipe import Sampling
from prefopt.types import Batch, Needs

MODEL = Path("~/.cache/prefopt-assets/smollm2-135m-instruct").expanduser()


def policy_of(dtype: str, adapter: bool) -> Policy:
    """SmolLM2, perhaps with an adapter that is not zero."""
    lora = {"adapter": {"r": 8, "targets": ["q_proj", "v_proj"]}} if adapter else {}
    section = PolicySection.model_validate({"model": str(MODEL), "dtype": dtype, **lora})
    policy = load_policy(section, load_tokenizer(section), 0).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += torch.randn(weight.shape, generator=draw) * 0.02
    return policy


def rows(policy: Policy, count: int) -> list[tuple[int, ...]]:
    texts = [row["prompt"] for row in prompts(count)]
    return [
        tuple(policy.tokenizer.apply_chat_template(text, add_generation_prompt=True)["input_ids"]) for text in texts
    ]


def sampler_of(server: str, policy: Policy) -> VLLMSampler:
    """That of a server which has the policy's weights already: without an adapter its own model is the policy."""
    sampler = VLLMSampler(server, Accelerator(cpu=True))
    if not policy.has_adapter:
        sampler.transfer = lambda _: sampler.server.base
    sampler.sync(policy, 0)
    return sampler


@torch.no_grad()
def logps(server: str, dtype: str, adapter: bool) -> None:
    policy = policy_of(dtype, adapter)
    sampler, asked = sampler_of(server, policy), rows(policy, 4)
    sampled = sampler(policy, asked, 8, Sampling(temperature=0.8, max_tokens=32), torch.arange(4))
    warmth = torch.full((4,), 0.8)
    batch = Batch(tuple(asked), sampled.completion_ids, sampled.mask, columns={"temperature": warmth})
    differences = (policy(batch, Needs()).logps - sampled.logps)[sampled.mask]
    tokens, far = len(differences), differences.abs()
    print(
        f"trainer {dtype}, {'adapter' if adapter else 'base'}: {tokens} tokens, |difference| max {far.max():.2g} "
        f"mean {far.mean():.2g}, mean ratio {differences.exp().mean():.4f}"
    )


def speed(server: str, dtype: str) -> None:
    policy = policy_of(dtype, adapter=False)
    asked, settings = rows(policy, 4), Sampling(temperature=1.0, max_tokens=64)
    for name, sampler in (("vLLM", sampler_of(server, policy)), ("embedded", TransformersSampler())):
        sampler(policy, asked, 8, settings.model_copy(update={"max_tokens": 2}), torch.arange(4))  # to warm up
        for repeat in range(3):
            begun = time.perf_counter()
            sampled = sampler(policy, asked, 8, settings, torch.arange(4) + 10 * repeat)
            seconds = time.perf_counter() - begun
            tokens = int(sampled.mask.sum())
            print(f"{name}, {dtype}: {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} a second", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("logps", "speed"))
    parser.add_argument("--server", default="http://127.0.0.1:8123")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapter", action="store_true")
    given = parser.parse_args()
    if given.what == "logps":
        logps(given.server, given.dtype, given.adapter)
    else:
        speed(given.server, given.dtype)
