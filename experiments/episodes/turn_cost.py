"""What a turn costs: keys and values kept from turn to turn, beside a loop that reads each conversation again at every turn.

    python experiments/episodes/turn_cost.py

A Llama of 4 layers and 256 dimensions, random weights, 32 rows with prompts of 64 tokens; in each of 8 turns the policy writes 24
tokens and reads 24. Both ways draw the same tokens. They alternate; the figures are processor seconds with one thread.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt import recipe
from prefopt.policy import Policy, TransformersSampler
from prefopt.policy.decode.conversation import KeptReading, Rereading, row_seeds
from prefopt.policy.decode.stops import StopTexts

ROWS, PROMPT, TURNS, WRITTEN, READ, ROUNDS = 32, 64, 8, 24, 24, 5


def model() -> Policy:
    """The policy; no token ends a turn, so that every turn has its full length."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Policy(LlamaForCausalLM(config))


def timed(call: Callable[[], Any], into: list[float]) -> Any:
    """Its result; its processor seconds are noted."""
    start = time.process_time()
    result = call()
    into.append(time.process_time() - start)
    return result


def episodes(conversation: Any) -> list[list[int]]:
    """All turns of all rows; what is read differs by row and turn."""
    rows, drawn = range(ROWS), []
    for turn in range(TURNS):
        read = [[(7 * row + turn + i) % 2048 for i in range(READ)] if turn else [] for row in rows]
        drawn += [one.tokens for one in conversation.turn(rows, read, [WRITTEN] * ROWS, turn)]
    return drawn


def main() -> None:
    """Print both ways' seconds, and what moving the kept keys and values takes of the first."""
    torch.set_num_threads(1)
    policy, sampler, settings = model(), TransformersSampler(), recipe.Sampling(max_tokens=WRITTEN)
    prompts = [[(row + i) % 2048 for i in range(PROMPT)] for row in range(ROWS)]
    seeds, stop = torch.arange(ROWS), StopTexts(None, [])
    moving: list[float] = []
    compact = KeptReading._compact
    KeptReading._compact = lambda *given: timed(lambda: compact(*given), moving)  # type: ignore[method-assign]
    kept, again, share = [], [], []
    for round in range(ROUNDS + 1):
        moving.clear()
        one = timed(lambda: episodes(sampler.conversation(policy, prompts, 1, settings, seeds, stop)), kept)
        other = timed(lambda: episodes(Rereading(sampler, policy, prompts, row_seeds(seeds, 1), settings, stop)), again)
        assert one == other and len(one) == ROWS * TURNS
        share.append(sum(moving) / kept[-1])
        if not round:  # warm-up
            kept.clear(), again.clear(), share.clear()
    print(f"kept        {statistics.median(kept):6.2f} s  [{min(kept):.2f}, {max(kept):.2f}]")
    print(f"read again  {statistics.median(again):6.2f} s  [{min(again):.2f}, {max(again):.2f}]")
    ratios = [b / a for a, b in zip(kept, again, strict=True)]
    print(f"ratio       {statistics.median(ratios):6.2f}    [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"moving what was read: {100 * statistics.median(share):.1f}% of the first")


if __name__ == "__main__":
    main()
