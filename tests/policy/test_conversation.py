"""Writing in turns: what is kept from turn to turn changes no token, and no row depends on its companions."""

from typing import Any

import pytest
import torch
from _tiny import tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig

from prefopt import recipe
from prefopt.policy import Policy, TransformersSampler
from prefopt.policy.decode.conversation import KeptConversation, Rereading, keeps_turns, row_seeds
from prefopt.policy.decode.drawing import DrawnTokens
from prefopt.policy.decode.stops import StopTexts
from prefopt.policy.loading import load_tokenizer

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
KEEP = {
    "llama": LlamaConfig(**SMALL, intermediate_size=32, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=128),
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=32),
    "mistral": MistralConfig(**SMALL, intermediate_size=32, num_key_value_heads=1, sliding_window=None),
}
REREAD = {
    "sliding windows": MistralConfig(**SMALL, intermediate_size=32, num_key_value_heads=1, sliding_window=8),
}
PROMPTS = [[3, 4, 5], [7], [8, 9, 10, 11, 12, 13, 2]]
SETTINGS = recipe.Sampling(max_tokens=6)
END = 58


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> Any:
    return load_tokenizer(recipe.Policy(model=str(tiny_model(tmp_path_factory.mktemp("lm")))))


def policy_of(config: Any, tokenizer: Any) -> Policy:
    torch.manual_seed(0)
    config.eos_token_id, config.pad_token_id = END, 57
    causal = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    for weight in causal.parameters():  # so that what is read matters: the draws of a fresh model hardly depend on it
        weight.data.mul_(4 if weight.ndim == 2 else 1)
    return Policy(causal, tokenizer)


def episodes(conversation: Any, rows: int, turns: int = 4) -> dict[tuple[int, int], DrawnTokens]:
    """Turns of rows which leave after one another; each reads as many tokens as its number says."""
    drawn: dict[tuple[int, int], DrawnTokens] = {}
    going = list(range(rows))
    for turn in range(turns):
        read = [[(row + turn + i) % 50 for i in range((3 * row + turn) % 5)] if turn else [] for row in going]
        most = [1 + (row + turn) % SETTINGS.max_tokens for row in going]
        drawn |= {(row, turn): one for row, one in zip(going, conversation.turn(going, read, most, turn), strict=True)}
        going = [row for row in going if row % (turn + 2) != 1]
    return drawn


@pytest.mark.parametrize("name", [*KEEP, *REREAD])
def test_what_is_kept_changes_no_token(name: str, tokenizer: Any) -> None:
    policy = policy_of((KEEP | REREAD)[name], tokenizer)
    sampler, seeds, stop = TransformersSampler(), torch.arange(3), StopTexts(tokenizer, ["w7 w3", "w9"])
    kept = sampler.conversation(policy, PROMPTS, 2, SETTINGS, seeds, stop)
    rows = [prompt for prompt in PROMPTS for _ in range(2)]
    reread = Rereading(sampler, policy, rows, row_seeds(seeds, 2), SETTINGS, stop)
    assert keeps_turns(policy) == (name in KEEP) == (not isinstance(kept, Rereading))
    one, other = episodes(kept, 6), episodes(reread, 6)
    assert one.keys() == other.keys() and len(one) > 12
    for place, drawn in one.items():
        assert drawn.tokens == other[place].tokens, place
        assert drawn.logps == pytest.approx(other[place].logps, abs=1e-6)
    assert len({len(drawn.tokens) for drawn in one.values()}) > 2


def test_a_row_does_not_depend_on_its_companions(tokenizer: Any) -> None:
    policy = policy_of(KEEP["llama"], tokenizer)
    sampler, stop = TransformersSampler(), StopTexts(tokenizer, [])

    def written(prompts: list[list[int]], seeds: list[int], row: int) -> list[list[int]]:
        conversation = sampler.conversation(policy, prompts, 2, SETTINGS, torch.tensor(seeds), stop)
        rows = list(range(2 * len(prompts)))
        turns = []
        for turn in range(3):
            drawn = conversation.turn(rows, [[5, 6] if turn else []] * len(rows), [6] * len(rows), turn)
            turns.append(drawn[row].tokens)
        return turns

    alone, among = written([PROMPTS[2]], [5], 1), written(PROMPTS, [3, 4, 5], 5)
    assert alone == among
    assert len({tuple(turn) for turn in alone}) == 3  # the noise of each turn is its own


def test_the_first_turn_is_a_completion_of_one_turn(tokenizer: Any) -> None:
    policy, seeds = policy_of(KEEP["llama"], tokenizer), torch.tensor([1, 2, 3])
    sampler = TransformersSampler()
    sampled = sampler(policy, PROMPTS, 2, SETTINGS, seeds)
    conversation = sampler.conversation(policy, PROMPTS, 2, SETTINGS, seeds, StopTexts(tokenizer, []))
    drawn = conversation.turn(range(6), [[]] * 6, [6] * 6, 0)
    flat = zip(sampled.completion_ids.flatten(0, 1).tolist(), sampled.mask.flatten(0, 1).sum(-1).tolist(), strict=True)
    assert [one.tokens for one in drawn] == [ids[:length] for ids, length in flat]


def test_what_was_read_is_read_once(tokenizer: Any) -> None:
    policy = policy_of(KEEP["llama"], tokenizer)
    read = []
    policy.causal.model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    stop = StopTexts(tokenizer, [])
    conversation = TransformersSampler().conversation(policy, [[1] * 50], 1, SETTINGS, torch.tensor([0]), stop)
    assert isinstance(conversation.conversation, KeptConversation)  # type: ignore[attr-defined]
    drawn = [conversation.turn([0], [[2, 3] if turn else []], [2], turn)[0] for turn in range(5)]
    unread = 1  # of each turn: its last token goes with what is read next
    assert sum(read) == 50 + 4 * 2 + sum(len(one.tokens) for one in drawn) - unread


@pytest.mark.parametrize("text", ["w7 w3", "7 w3", "w3"])
def test_a_text_ends_a_turn_wherever_the_tokenizer_cuts_it(text: str, tokenizer: Any) -> None:
    stop = StopTexts(tokenizer, [text, "w50 w51 w52"])
    tokens = torch.tensor([[1, 2, 7], [1, 7, 3], [3, 7, 4], [7, 2, 3]])
    assert stop.completed(tokens[[0, 1, 3]]).tolist() == [False, True, text == "w3"]
    assert stop.end([1, 7, 3, 7, 3]) == 3 and stop.end([1, 2, 50, 51]) is None
    if text == "w3":
        return
    assert not StopTexts(tokenizer, [text]).completed(tokens[:, :2]).any()


def test_a_vocabulary_is_looked_through_once(tokenizer: Any) -> None:
    from prefopt.policy.decode.stops import stop_texts_of

    assert stop_texts_of(tokenizer, ("w3",)) is stop_texts_of(tokenizer, ("w3",))
    stop = stop_texts_of(tokenizer, ("w7 w3",))
    assert stop.ended([1, 7, 3]) and not stop.ended([1, 7]) and not stop_texts_of(tokenizer, ()).ended([7, 3])
