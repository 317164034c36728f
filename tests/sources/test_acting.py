"""Episodes: what is written, which tokens are whose, why they end, and what an environment can do to a run (nothing)."""

import json
import math
import random
import re
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import tiny_model
from accelerate import Accelerator

from prefopt import PrefoptError, Turn, recipe
from prefopt.data import Example, tokenise
from prefopt.data.formats import parse
from prefopt.environments.contained import _UNKEPT
from prefopt.evaluation.of_episodes import of_episodes
from prefopt.policy import Policy, TransformersSampler, load_policy
from prefopt.policy.loading import load_tokenizer
from prefopt.sources.acting import Acting
from prefopt.sources.rollout_rows import record
from prefopt.sources.scoring import PromptCompletions
from prefopt.sources.writing import Completer
from prefopt.types import Sampled, Written

CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} w50 {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
SAMPLING = recipe.Sampling(max_tokens=5)


@dataclass
class Talks:
    """Answers `answers` times; what it was told is kept for the test."""

    answers: int = 2
    opening: Any = None
    stop: tuple[str, ...] = ()
    told: list[Any] = field(default_factory=list)
    closed: int = 0

    def reset(self, row: Any, seed: int) -> Any:
        self.row, self.seed, self.turn = row, seed, 0
        return self.opening

    def step(self, text: str, *, truncated: bool) -> Turn:
        self.turn += 1
        self.told.append((text, truncated))
        return Turn(f" w{self.turn} w9", float(self.turn), self.turn > self.answers, {"steps": 1.0})

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> dict[bool, Policy]:
    home = tmp_path_factory.mktemp("models")
    found = {}
    for chat in (False, True):
        spec = recipe.Policy(model=str(tiny_model(home / str(chat), chat)))
        found[chat] = load_policy(spec, load_tokenizer(spec), 0)
        found[chat].tokenizer.chat_template = CHAT if chat else None
    return found


def write(
    policy: Policy,
    environment: Any,
    prompts: Any = ("w3 w4", "w5"),
    completions: int = 2,
    sampler: Any = None,
    sampling: recipe.Sampling = SAMPLING,
    seeds: Any = None,
    **more: Any,
) -> list[list[Written]]:
    acting = Acting(environment, "Talks", **{"max_turns": 8, "max_tokens": 60, "timeout": 5.0} | more)
    completer = Completer.of(sampler or TransformersSampler(), policy, sampling, Accelerator(cpu=True), acting)
    rows, _ = tokenise([Example(prompt, where=f"row {i}") for i, prompt in enumerate(prompts)], policy.tokenizer)
    return completer.write(policy, rows, completions, sampling, torch.tensor(seeds or range(len(rows))))


def long_turns(policy: Policy, environment: Any, **more: Any) -> list[Written]:
    """Those episodes of a hundred in which every turn is a word, so that each is one token long."""
    every = [one for group in write(policy, environment, completions=50, **more) for one in group]
    words = [one for one in every if all(id < 57 for id, own in zip(one.ids, one.mask, strict=True) if own)]
    assert len(words) > 10
    return words


ENDS = tuple(f"{i}" for i in range(10))  # any word ends a turn: every turn is one token


def test_tokens_of_the_environment_are_inside_and_nobodys(models: Any) -> None:
    policy = models[False]
    for one in long_turns(policy, lambda: Talks(stop=ENDS)):
        assert len(one.ids) == len(one.mask) == len(one.logps or ()) and one.stop in ("stop", "eos")
        assert [len(turn) for turn in one.turns] == [1, 1, 1] and one.rewards == (1.0, 2.0, 3.0)
        assert one.mask == (True, False, False, True, False, False, True)
        decoded = policy.tokenizer.convert_ids_to_tokens(list(one.ids))
        assert decoded[1:3] == ["w1", "w9"] and decoded[4:6] == ["w2", "w9"]
        assert all((logp == 0) == (not by_policy) for logp, by_policy in zip(one.logps or (), one.mask, strict=True))
        assert [m["role"] for m in one.messages] == ["assistant", "environment"] * 3
        assert one.info == {"steps": 3.0, "retried": 0.0, "failed": 0.0, "timed_out": 0.0, "unkept": 0.0}


def test_a_number_that_no_turn_reports_is_a_sum_of_none(models: Any) -> None:
    class Counts(Talks):
        logs = ("steps", "never")

    every = [one for group in write(models[False], lambda: Counts(stop=ENDS)) for one in group]
    assert all(one.info["never"] == 0.0 < one.info["steps"] for one in every)
    assert of_episodes([every], ())["never"].tolist() == [[0.0] * len(every)]
    Counts.logs = "never"
    with pytest.raises(PrefoptError, match=r"Talks: logs is 'never'; it is a list of names"):
        write(models[False], lambda: Counts(stop=ENDS))


def test_an_environment_that_says_nothing_divides_a_completion_into_turns(models: Any) -> None:
    class Steps(Talks):
        def step(self, text: str, *, truncated: bool) -> Turn:
            return super().step(text, truncated=truncated)._replace(text="")

    for one in long_turns(models[False], lambda: Steps(stop=ENDS)):
        assert one.turns == (range(0, 1), range(1, 2), range(2, 3)) and all(one.mask) and one.rewards == (1.0, 2.0, 3.0)


class Ends(Talks):
    def end(self) -> float:
        return 10.0


@pytest.mark.parametrize(
    ("more", "stop", "last"),
    [
        ({"max_turns": 2}, "turns", 12.0),  # what the turn itself has, and the end
        ({"max_tokens": 3}, "length", 11.0),  # what the environment answered leaves no room for a turn
        ({}, "stop", 3.0),  # it ended itself
    ],
)
def test_an_environment_rewards_the_end_of_what_it_did_not_end(models: Any, more: Any, stop: str, last: float) -> None:
    for one in long_turns(models[False], lambda: Ends(stop=ENDS), **more):
        assert one.stop in (stop, "eos" if stop == "stop" else stop) and one.rewards[-1] == last


def test_a_turn_that_was_cut_had_its_last_reward(models: Any) -> None:
    cut = [one for group in write(models[False], Ends, completions=20) for one in group if one.stop == "length"]
    assert cut and all(one.rewards[-1] == len(one.rewards) for one in cut)


def test_a_turn_of_a_conversation_follows_the_template(models: Any) -> None:
    policy = models[True]
    prompt = [{"role": "user", "content": "w3"}]
    for one in long_turns(policy, lambda: Talks(stop=ENDS), prompts=[prompt]):
        text = policy.tokenizer.decode(list(one.prompt or ()) + list(one.ids))
        messages = [*prompt, *one.messages[:-1]]
        assert [m["role"] for m in messages] == ["user", *["assistant", "user"] * 2, "assistant"]
        rendered = policy.tokenizer.apply_chat_template(messages, tokenize=False)
        expected = rendered.replace("assistant", "<unk>").replace("user", "<unk>")
        assert text.split() == expected.split()[:-1]  # an end of the turn that the policy did not write


@pytest.mark.parametrize(
    ("more", "environment", "stop", "turns"),
    [
        ({"max_turns": 2}, lambda: Talks(stop=ENDS), "turns", 2),
        ({"max_tokens": 6}, lambda: Talks(stop=ENDS), "length", 2),
        ({"max_tokens": 7}, lambda: Talks(stop=ENDS), "stop", 3),
        ({"sampling": recipe.Sampling(max_tokens=1)}, lambda: Talks(), "length", 1),
    ],
)
def test_why_an_episode_ends(models: Any, more: Any, environment: Any, stop: str, turns: int) -> None:
    for one in long_turns(models[False], environment, **more):
        assert (one.stop, len(one.turns), len(one.rewards)) == (stop, turns, turns)
        assert one.mask[-1] and one.ended == (stop == "stop")


def test_a_turn_that_was_cut_is_told_as_such(models: Any) -> None:
    made: list[Talks] = []

    def factory() -> Talks:
        made.append(Talks())
        return made[-1]

    written = [one for group in write(models[False], factory, completions=20) for one in group]
    for one, env in zip(written, made, strict=True):
        assert [truncated for _, truncated in env.told] == [*[False] * (len(one.turns) - 1), one.stop == "length"]
        assert env.closed == 1


@pytest.mark.parametrize("chat", [False, True])
def test_an_opening_follows_the_prompt(models: Any, chat: bool) -> None:
    policy = models[chat]
    prompt = [{"role": "user", "content": "w3"}] if chat else "w3"
    (one, other), *_ = write(policy, lambda: Talks(opening=" w7 w8"), prompts=[prompt])
    assert one.prompt == other.prompt
    decoded = policy.tokenizer.decode(list(one.prompt or ()))
    assert decoded.split() == (
        ["<unk>", "w3", "w50", "<unk>", "w7", "w8", "w50", "<unk>"] if chat else ["w3", "w7", "w8"]
    )


def test_the_completions_of_a_prompt_face_one_task(models: Any) -> None:
    made: list[Talks] = []

    def factory() -> Talks:
        made.append(Talks())
        return made[-1]

    write(models[False], factory, completions=3)
    seeds = [env.seed for env in made]
    assert len(set(seeds[:3])) == len(set(seeds[3:])) == 1 and seeds[0] != seeds[3]
    assert made[0].row == {"prompt": "w3 w4"}


def test_an_episode_does_not_depend_on_its_companions(models: Any) -> None:
    class Draws(Talks):
        """Its chance is that of the process, which it seeds, as TextArena's environments do."""

        def reset(self, row: Any, seed: int) -> Any:
            random.seed(3)
            return super().reset(row, seed)

        def step(self, text: str, *, truncated: bool) -> Turn:
            turn = super().step(text, truncated=truncated)
            drawn = f" w{random.randrange(50)} w{np.random.randint(50)} w{int(torch.randint(50, ()))}"
            return turn._replace(text=drawn, done=False)

    prompts = ("w3 w4", "w5", "w6 w7 w8")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    together = write(models[False], lambda: Draws(stop=ENDS), prompts, seeds=[1, 2, 3])
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1] and torch.equal(torch.get_rng_state(), states[2])  # type: ignore[union-attr]
    alone = write(models[False], lambda: Draws(stop=ENDS), prompts[2:], seeds=[3])
    assert alone[0] == together[2]
    assert together[0][0].messages != together[0][1].messages and len(together[0][0].turns) > 3


def test_every_sampler_writes_the_same_episodes(models: Any) -> None:
    class Other:
        """No `TransformersSampler`, so that rows are read again at every turn; it has no log-probs, either."""

        def __call__(self, *args: Any) -> Sampled:
            sampled = TransformersSampler()(*args)
            return Sampled(sampled.completion_ids, sampled.mask)

    kept, reread = (write(models[False], lambda: Talks(stop=ENDS[:4]), sampler=s) for s in (None, Other()))
    for one, other in zip(*(chain.from_iterable(groups) for groups in (kept, reread)), strict=True):
        assert (one.ids, one.mask, one.turns, one.stop) == (other.ids, other.mask, other.turns, other.stop)
        assert other.logps is None and one.logps is not None


class Fails(Talks):
    """Raises in a turn, the first so many times that it gets there."""

    at = 2
    shared: list[int]

    def step(self, text: str, *, truncated: bool) -> Turn:
        turn = super().step(text, truncated=truncated)
        if self.turn == self.at and self.shared[0]:
            self.shared[0] -= 1
            raise OSError("the service is away")
        return turn


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("failures", [0, 1, 2])
def test_an_environment_that_raises_is_tried_again(models: Any, failures: int, at: int) -> None:
    def factory() -> Fails:
        env = Fails(stop=ENDS)
        env.shared, env.at = shared, at
        return env

    shared = [failures]
    ((one,),) = write(models[False], factory, prompts=["w3"], completions=1)
    assert one.info["retried"] == min(failures, 1) and one.info["failed"] == (failures == 2)
    assert len(one.turns) == (at if failures == 2 else 3) and (one.stop == "error") == (failures == 2)
    if failures < 2:
        untouched = write(models[False], lambda: Talks(stop=ENDS), prompts=["w3"], completions=1)
        assert one.ids == untouched[0][0].ids and one.rewards == untouched[0][0].rewards


def test_an_environment_that_cannot_begin_makes_its_completion_absent(models: Any) -> None:
    class Bad(Talks):
        def reset(self, row: Any, seed: int) -> Any:
            if row["prompt"] == "w5":
                raise ValueError("no such task")
            return super().reset(row, seed)

    good, bad = write(models[False], lambda: Bad(stop=ENDS))
    assert all(one.stop == "error" and not any(one.mask) and len(one.ids) == 1 for one in bad)
    assert all(len(one.turns) == 3 for one in good)


def test_an_environment_that_hangs_loses_its_episode_alone(models: Any) -> None:
    class Hangs(Talks):
        def step(self, text: str, *, truncated: bool) -> Turn:
            if self.row["prompt"] == "w5":
                time.sleep(30)
            return super().step(text, truncated=truncated)

    start = time.monotonic()
    good, bad = write(models[False], lambda: Hangs(stop=ENDS), completions=1, timeout=0.2)
    assert time.monotonic() - start < 10
    assert bad[0].stop == "error" and bad[0].info["timed_out"] == 1 and any(bad[0].mask)
    assert good[0].stop != "error"


@pytest.mark.parametrize(
    ("environment", "prompt", "message"),
    [
        (
            lambda: Talks(opening=[{"role": "user", "content": "w1"}]),
            "w3",
            "row 0 has a text as its prompt: return a text",
        ),
        (
            lambda: type("E", (Talks,), {"tools": [{"name": "f"}]})(),
            "w3",
            "it offers tools, which a chat template writes",
        ),
        (lambda: Talks(), [{"role": "assistant", "content": "w3"}], "ends in the beginning of an answer"),
    ],
)
def test_what_cannot_be_written_is_refused(models: Any, environment: Any, prompt: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        write(models[not isinstance(prompt, str)], environment, prompts=[prompt])


FORGETS = (
    "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }} {% endif %}{% endfor %}"
)
TRIMS = "{% for m in messages %}{{ m['content'] | replace('w', 'W') if m['role'] == 'assistant' else m['content'] }} {% endfor %}"


REFUSES = (
    "{% for m in messages %}{% if '3' in m['content'] and loop.index > 1 %}{{ raise_exception('no three') }}{% endif %}"
    "{{ m['content'] }} {% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (FORGETS, r"does not keep what the policy wrote in turn 1: it was '.*' and .* '.*', which"),
        (TRIMS, r"does not keep what the policy wrote in turn"),
        (REFUSES, "no three"),
    ],
)
def test_a_turn_that_the_template_does_not_keep_is_its_episodes_failure(
    models: Any, caplog: Any, template: str, why: str
) -> None:
    policy, prompt = models[True], [{"role": "user", "content": "w4"}]
    own, policy.tokenizer.chat_template = policy.tokenizer.chat_template, template
    _UNKEPT.clear()
    try:
        (group,) = write(policy, lambda: Talks(stop=ENDS), prompts=[prompt], completions=40)
    finally:
        policy.tokenizer.chat_template = own
    lost = [one for one in group if one.stop == "error"]
    assert lost and all(one.info["unkept"] == (one in lost) for one in group)
    assert all(len(one.rewards) == len(one.turns) and any(one.mask) for one in lost)
    assert template != REFUSES or len(lost) < len(group)  # the others go on
    assert re.search(why, caplog.text) and caplog.text.count("its episode has no verdict") == 1


def test_the_trainer_reads_what_the_sampler_wrote(models: Any) -> None:
    from prefopt.sources.writing import batch_of_written
    from prefopt.types import Needs

    policy = models[False]
    rows, _ = tokenise([Example(prompt) for prompt in ("w3 w4", "w5")], policy.tokenizer)
    written = write(policy, lambda: Talks(opening=" w7", stop=ENDS[:5]), completions=4)
    batch = batch_of_written(rows, written)
    logps = policy(batch, Needs()).logps.detach()
    worst = 0.0
    for b, group in enumerate(written):
        for k, one in enumerate(group):
            assert batch.mask[b, k, : len(one.mask)].tolist() == list(one.mask)
            for t, logp in enumerate(one.logps or ()):
                worst = max(worst, abs(logp - float(logps[b, k, t])))
    assert 0 < worst < 1e-5 and not math.isnan(worst)


@pytest.mark.parametrize("chat", [False, True])
def test_feedback_sees_what_the_environment_said_first(models: Any, chat: bool) -> None:
    from prefopt.sources.writing import prompt_seen

    prompt: Any = [{"role": "user", "content": "w3"}] if chat else "w3"
    (group,) = write(models[chat], lambda: Talks(opening=" w7 w8", stop=ENDS), prompts=[prompt])
    expected: Any = (*prompt, {"role": "user", "content": " w7 w8"}) if chat else "w3 w7 w8"
    assert prompt_seen(prompt, (one.opening for one in group)) == expected
    (group,) = write(models[chat], lambda: Talks(stop=ENDS), prompts=[prompt])
    assert prompt_seen(prompt, (one.opening for one in group)) == (tuple(prompt) if chat else prompt)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("chat", [False, True])
def test_what_is_kept_of_rollouts_is_data_with_the_same_tokens(models: Any, chat: bool, turns: int) -> None:
    policy, prompt = models[chat], [{"role": "user", "content": "w3"}] if chat else "w3"
    environment, more = (lambda: Talks(turns - 1, " w7", ENDS)), {"prompts": [prompt], "max_turns": turns}
    acting = Acting(environment, "Talks", turns, 60, None)
    completer = Completer.of(TransformersSampler(), policy, SAMPLING, Accelerator(cpu=True), acting)
    rows, _ = tokenise([Example(prompt, columns={"task": 4})], policy.tokenizer)
    written = long_turns(policy, environment, **more)
    group = PromptCompletions(rows[0], written, [completer.completion(one, rows[0].example.prompt) for one in written])
    kept = [json.loads(json.dumps(record(group, k, math.nan, completer))) for k in range(len(written))]
    examples = [parse(one) for one in kept]
    assert {type(one.prompt) for one in examples} == {tuple if chat else str}
    assert examples[0].columns["task"] == 4 and examples[0].columns["turn_rewards"] == list(written[0].rewards)
    again, _ = tokenise(examples, policy.tokenizer)
    for one, row in zip(written, again, strict=True):
        size, mask = len(one.ids), (True,) * len(one.ids) if row.masks is None else row.masks[0]
        assert row.prompt_ids == one.prompt
        assert row.completion_ids[0][:size] == one.ids
        assert chat or (len(row.completion_ids[0]) == size and mask == one.mask)  # a template adds what ends a turn
    assert all(one["unread"][0]["content"] == f" w{turns} w9" for one in kept)


def test_an_environment_that_cannot_be_made_is_no_traceback(models: Any) -> None:
    made = []

    def factory() -> Talks:
        made.append(1)
        raise OSError("no service")

    ((one, other),) = write(models[False], factory, prompts=["w3"])
    assert one.stop == other.stop == "error" and len(made) == 4 and one.info["failed"] == 1


def test_a_message_for_the_user_ends_the_run(models: Any) -> None:
    class Asks(Talks):
        def reset(self, row: Any, seed: int) -> Any:
            raise PrefoptError("the row has no answer")

    made: list[Asks] = []

    def factory() -> Asks:
        made.append(Asks())
        return made[-1]

    with pytest.raises(PrefoptError, match="the row has no answer"):
        write(models[False], factory)
    assert [env.closed for env in made] == [1]


def test_a_companion_that_failed_at_the_beginning_takes_no_opening_away(models: Any) -> None:
    made: list[Talks] = []

    def factory() -> Talks:
        env = Talks(opening=" w7", stop=ENDS)
        made.append(env)
        if len(made) <= 2:  # the first completion's environment, and its second try
            env.reset = lambda row, seed: 1 / 0  # type: ignore[method-assign]
        return env

    ((failed, good),) = write(models[False], factory, prompts=["w3"])
    assert failed.stop == "error" and good.stop != "error"
    assert failed.prompt == good.prompt and len(good.prompt or ()) == 2


def test_texts_of_one_row_do_not_end_turns_of_another(models: Any) -> None:
    class OfRow(Talks):
        def reset(self, row: Any, seed: int) -> Any:
            self.stop = ENDS if row["prompt"] == "w5" else ()
            return super().reset(row, seed)

    together = write(models[False], OfRow, completions=4, seeds=[1, 2])
    alone = write(models[False], OfRow, ["w3 w4"], completions=4, seeds=[1])
    assert together[0] == alone[0]
    assert max(len(turn) for one in together[0] for turn in one.turns) > 1


def test_what_an_environment_does_to_its_row_is_its_own_affair(models: Any) -> None:
    class Eats(Talks):
        def reset(self, row: Any, seed: int) -> Any:
            self.eaten = row["items"].pop()
            return super().reset(row, seed)

        def step(self, text: str, *, truncated: bool) -> Turn:
            return Turn(reward=self.eaten, done=True)

    policy = models[False]
    completer = Completer.of(
        TransformersSampler(), policy, SAMPLING, Accelerator(cpu=True), Acting(Eats, "Eats", 8, 60, None)
    )
    rows, _ = tokenise([Example("w3", columns={"items": [1.0, 2.0]})], policy.tokenizer)
    ((one, other),) = completer.write(policy, rows, 2, SAMPLING, torch.tensor([0]))
    assert one.rewards == other.rewards == (2.0,) and rows[0].columns == {"items": [1.0, 2.0]}


@pytest.mark.parametrize("stop", ["</a>", (3,)])
def test_a_stop_that_is_no_list_of_texts_is_refused(models: Any, stop: Any) -> None:
    with pytest.raises(PrefoptError, match=r"Talks: stop is .* it is a list of texts that end a turn"):
        write(models[False], lambda: Talks(stop=stop))


@pytest.mark.parametrize("name", ["stop", "tools", "logs"])
def test_what_an_environment_says_of_itself_may_be_nothing_but_no_traceback(models: Any, name: str) -> None:
    silent = type("Silent", (Talks,), {name: property(lambda self: None, lambda self, value: None)})
    assert all(one.stop != "error" for group in write(models[False], silent) for one in group)
    broken = type("Broken", (Talks,), {name: property(lambda self: 1 / 0, lambda self, value: None)})
    with pytest.raises(PrefoptError, match=rf"Talks: {name} raised ZeroDivisionError"):
        write(models[False], broken)
    with pytest.raises(PrefoptError, match=rf"Talks: {name} is 'word'; it is a list"):
        write(models[False], type("Word", (Talks,), {name: property(lambda self: "word", lambda self, value: None)}))


def test_half_a_character_is_read_as_none_wherever_a_message_has_it(models: Any) -> None:
    class Half(Talks):
        def step(self, text: str, *, truncated: bool) -> Turn:
            said = [{"role": "w1\ud800", "name": "\ud800", "content": [{"text": "\udfff"}]}]
            return super().step(text, truncated=truncated)._replace(text=said)

    prompts: Any = [({"role": "user", "content": "w3"},)]
    for one in long_turns(models[True], lambda: Half(stop=ENDS), prompts=prompts):
        assert one.messages[1] == {"role": "w1?", "name": "?", "content": [{"text": "?"}]} and one.stop != "error"


def test_a_list_that_an_environment_goes_on_with_is_what_it_said_then(models: Any) -> None:
    class Grows(Talks):
        failed = False

        def reset(self, row: Any, seed: int) -> Any:
            super().reset(row, seed)
            self.said: list[Any] = []
            return self.said

        def step(self, text: str, *, truncated: bool) -> Turn:
            if self.turn == 2 and not Grows.failed:
                Grows.failed = True
                raise ValueError("once")
            self.said.append({"role": "user", "content": f"w{len(self.said)}"})
            return super().step(text, truncated=truncated)._replace(text=self.said)

    prompts: Any = [({"role": "user", "content": "w3"},)]
    every = long_turns(models[True], lambda: Grows(stop=ENDS), prompts=prompts)
    assert Grows.failed and all(one.stop != "error" and one.info["failed"] == 0 for one in every)
    roles = ["assistant", "user", "assistant", "user", "user", "assistant", "user", "user", "user"]
    assert all([message["role"] for message in one.messages] == roles for one in every)


def test_an_environment_that_does_not_close_loses_nobodys_verdict(models: Any) -> None:
    class Stuck(Talks):
        def close(self) -> None:
            time.sleep(0.3)

    ((one, _),) = write(models[False], lambda: Stuck(stop=ENDS), prompts=["w3"], timeout=0.1)
    assert one.stop != "error" and one.info["timed_out"] == 0


def test_an_opening_counts_among_the_tokens_of_an_episode(models: Any) -> None:
    (one, *_), *_ = write(models[False], lambda: Talks(opening=" w7 w8 w9", stop=ENDS), max_tokens=4)
    assert len(one.ids) == 1 and one.stop in ("length", "stop", "eos")
    with pytest.raises(PrefoptError, match=r"is 3 tokens, and an episode has 3 at most \(max_tokens\)"):
        write(models[False], lambda: Talks(opening=" w7 w8 w9"), max_tokens=3)


def test_half_a_character_is_no_traceback(models: Any) -> None:
    class Half(Talks):
        def step(self, text: str, *, truncated: bool) -> Turn:
            return super().step(text, truncated=truncated)._replace(text=" \ud800 w1")

    assert all(one.stop != "error" for group in write(models[False], lambda: Half(stop=ENDS)) for one in group)


def test_a_sampler_that_returns_something_else_is_named(models: Any) -> None:
    with pytest.raises(PrefoptError, match=r"the sampler function returned a list, not prefopt\.Sampled"):
        write(models[False], lambda: Talks(), sampler=lambda *given: [])
