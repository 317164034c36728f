"""Environments in TRL's form behave as in TRL's own loop: its results, its errors, its rewards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _callers import call, calling_model
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import PrefoptError, recipe
from prefopt.data import Example, tokenise
from prefopt.environments.trl import TRLEnvironment
from prefopt.policy import TransformersSampler, load_policy
from prefopt.policy.loading import load_tokenizer
from prefopt.sources.acting import Acting
from prefopt.sources.writing import Completer


class Shop:
    """An environment of the kind that GRPOTrainer takes."""

    def reset(self, *, budget: int = 0, **row: Any) -> str | None:
        self.budget, self.basket = budget, []
        return f" You have {budget}." if budget else None

    def buy(self, item: str, price: int) -> dict[str, Any]:
        """Buy something.

        Args:
            item: What.
            price: At which price.
        """
        if price > self.budget:
            raise ValueError("too dear")
        self.budget -= price
        self.basket.append(item)
        return {"left": self.budget}

    async def ask(self, item: str) -> str:
        """Ask for a price.

        Args:
            item: Of what.
        """
        return f"{item} costs {len(item)}"

    def get_reward(self) -> float:
        return float(len(self.basket))

    def _secret(self) -> None: ...


class Silent:
    def reset(self, **row: Any) -> None: ...

    def look(self) -> str:
        """Look."""
        return "nothing"


ROW = {"prompt": [{"role": "user", "content": "Buy."}], "budget": 10, "environment": "shop"}


def begun(**fields: Any) -> TRLEnvironment:
    env = TRLEnvironment(Shop, **fields)
    assert env.reset(ROW, 0) == " You have 10."
    return env


def test_an_episode_calls_methods_and_ends_with_the_environments_reward() -> None:
    env = begun()
    assert [tool["function"]["name"] for tool in env.tools] == ["ask", "buy"]  # in TRL's order
    turn = env.step(call("ask", item="tea") + call("buy", item="tea", price=3), truncated=False)
    assert turn.text == [
        {"role": "tool", "name": "ask", "content": "tea costs 3"},
        {"role": "tool", "name": "buy", "content": "{'left': 7}"},  # as TRL writes it
    ]
    assert (turn.reward, turn.done, turn.info) == (0.0, False, {"calls": 2.0, "calls_failed": 0.0})
    last = env.step("I have tea.", truncated=False)
    assert (last.reward, last.done) == (1.0, True)
    env.close()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (call("buy", item="car", price=99), "{'error': 'too dear'}"),
        (call("sell", item="car"), "{'error': 'Tool sell not found.'}"),
        (call("_secret"), "{'error': 'Tool _secret not found.'}"),
        (call("get_reward"), "{'error': 'Tool get_reward not found.'}"),
        (call("buy", item="tea"), "missing 1 required positional argument: 'price'"),
    ],
)
def test_errors_are_trls(text: str, content: str) -> None:
    turn = begun().step(text, truncated=False)
    assert content in turn.text[0]["content"] and turn.info["calls_failed"] == 1


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        (call("buy", item="a", price=1) + "<tool_call>buy tea</tool_call>", False),
        (call("buy", item="a", price=1), True),
    ],
)
def test_what_is_no_call_to_trl_or_was_cut_is_the_end(text: str, truncated: bool) -> None:
    turn = begun().step(text, truncated=truncated)
    assert (turn.done, turn.reward, turn.info["calls"]) == (True, 0.0, 0.0)


def test_reward_functions_are_called_as_trl_calls_them() -> None:
    seen: dict[str, Any] = {}

    def left(environments: Any, **given: Any) -> list[float]:
        seen.update(given)
        return [env.budget for env in environments]

    async def nothing(completions: Any, **given: Any) -> list[None]:
        return [None for _ in completions]

    env = begun(rewards=[left, nothing])
    env.step(call("buy", item="tea", price=3), truncated=False)
    assert env.step("done", truncated=False).reward == 1.0 + 7.0
    assert seen["budget"] == [10] and seen["prompts"] == [ROW["prompt"]]
    assert [message["role"] for message in seen["completions"][0]] == ["assistant", "tool", "assistant"]
    assert seen["completions"][0][0]["tool_calls"][0]["function"] == {
        "name": "buy",
        "arguments": {"item": "tea", "price": 3},
    }
    env.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factory": Silent}, "nothing rewards an episode: Silent has no get_reward, and there are no `rewards`"),
        ({"factory": object}, "object has no method reset"),
        ({"factory": "nowhere.py:Shop"}, r"no file nowhere\.py"),
    ],
)
def test_what_trl_would_not_take_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        TRLEnvironment(**fields)


class Walk:
    """Where a walker stands is the reward; `reset` adds nothing to the prompt."""

    def reset(self, *, start: int, **row: Any) -> None:
        self.at = start

    def move(self, by: int) -> dict[str, int]:
        """Move.

        Args:
            by: How far.
        """
        if self.at + by > 4:
            raise ValueError("a wall")
        self.at += by
        return {"at": self.at}

    def look(self) -> str:
        """Look around."""
        return f"You are at {self.at}."

    def get_reward(self) -> float:
        return float(self.at)


TEXTS = [
    call("move", by=1),
    call("move", by=3),
    call("look"),
    call("jump"),
    "I am there.",
    "<tool_call>\nhm\n</tool_call>",
]
WALKS = [{"prompt": [{"role": "user", "content": "Walk" + "." * n}], "start": n % 3} for n in range(24)]
TOKENS, TURNS = 400, 6


def in_trl(folder: Path, home: Path) -> tuple[list[Any], Any]:
    """Of each row the ids of prompt and completion, the mask and the reward, and the tokenizer, from TRL's own loop."""
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(home),
        per_device_train_batch_size=2 * len(WALKS),
        num_generations=2,
        max_completion_length=TOKENS,
        max_tool_calling_iterations=TURNS - 1,
        top_k=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_list(WALKS),
        environment_factory=Walk,
    )
    out = trainer._generate_and_score_completions([row for row in WALKS for _ in range(2)])
    episodes = []
    for i in range(0, 2 * len(WALKS), 2):
        asked, written = out["prompt_mask"][i].bool(), out["completion_mask"][i].bool()
        ids, mask = out["completion_ids"][i][written].tolist(), out["tool_mask"][i][written].bool().tolist()
        episodes.append((out["prompt_ids"][i][asked].tolist(), ids, mask, trainer.environments[i].get_reward()))
    return episodes, trainer.processing_class


def here(folder: Path, response_template: Any) -> list[Any]:
    """The same, from prefopt's."""
    spec = recipe.Policy(model=str(folder))
    policy = load_policy(spec, load_tokenizer(spec), 0)
    policy.tokenizer.response_template = response_template
    sampling = recipe.Sampling(temperature=0.0, max_tokens=TOKENS)
    acting = Acting(lambda: TRLEnvironment(Walk, tokenizer=policy.tokenizer), "Walk", TURNS, TOKENS, 5.0)
    completer = Completer.of(TransformersSampler(), policy, sampling, Accelerator(cpu=True), acting)
    examples = [Example(row["prompt"], columns={"start": row["start"]}) for row in WALKS]
    rows, _ = tokenise(examples, policy.tokenizer)
    written = completer.write(policy, rows, 1, sampling, torch.arange(len(rows)))
    return [(list(one.prompt or ()), list(one.ids), list(one.mask), sum(one.rewards)) for (one,) in written]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what TRL 1.16 calls in transformers 5.23
@pytest.mark.parametrize("seed", [1, 4, 5])
def test_episodes_are_trls_token_by_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """The same class, model and rows: prompts, completions, masks and rewards of GRPOTrainer and of prefopt, drawn greedily."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    folder = calling_model(tmp_path / "model", TEXTS, seed)
    theirs, tokenizer = in_trl(folder, tmp_path / "trl")
    ours = here(folder, tokenizer.response_template)
    assert ours == theirs
    holes = [mask for _, _, mask, _ in ours if not all(mask)]
    assert len(holes) > 5 and len({reward for *_, reward in ours}) > 3  # there was something to agree on
