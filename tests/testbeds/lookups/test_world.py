"""The world of look-ups: its facts, its questions, its recorded episodes, and the LM that ships."""

import re
from collections import Counter
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.data import load_examples, tokenise
from prefopt.environments import Search
from prefopt.testbeds import lookups
from prefopt.testbeds.lookups import language
from prefopt.testbeds.lookups.data import SEARCHES, episode
from prefopt.testbeds.lookups.world import ASKED, QUESTIONS, RELATIONS, World

DATA = "prefopt.testbeds.lookups"


def test_a_world_has_one_fact_of_each_and_answers_are_equally_common() -> None:
    world = World(3)
    assert len(set(world.facts())) == len(world.links) == sum(len(relation.of) for relation in RELATIONS)
    for relation in RELATIONS:
        counts = Counter(world.links[relation, one] for one in relation.of)
        assert set(counts) <= set(relation.to) and max(counts.values()) <= len(relation.of) // len(relation.to) + 1
    assert World(3).links == world.links != World(4).links


def test_the_query_of_each_look_up_finds_its_fact_first() -> None:
    index = Search(f"{DATA}:facts")._index
    for (relation, one), other in World().links.items():
        assert index.find(relation.query.format(one), 1) == [relation.fact.format(one, other)]


def test_what_is_asked_in_tests_needs_two_look_ups_and_is_never_asked_in_training() -> None:
    train, test = ({row["prompt"] for row in lookups.questions(split=split)} for split in ("train", "test"))
    assert len(train) + len(test) == len(QUESTIONS) and not train & test and len(test) == 100
    assert {row["hops"] for row in lookups.questions(split="test")} == {2}
    assert {row["hops"] for row in lookups.questions()} == {1, 2}
    shown = {row["prompt"][0]["content"] for row in lookups.demonstrations(500)}
    shown |= {row["prompt"][0]["content"] for row in lookups.preferences(100)}
    assert not shown & test


def test_a_larger_n_goes_on_and_none_asks_each_once() -> None:
    every = list(lookups.questions(hops=2))
    assert len(every) == len({row["prompt"] for row in every})
    assert list(islice(lookups.questions(900), 5)) == list(lookups.questions(5)) != list(lookups.questions(5, seed=1))
    assert len(list(lookups.questions(900))) == 900


@pytest.mark.parametrize("question", [next(q for q in QUESTIONS if q.kind == kind) for kind in ASKED], ids=str)
def test_a_recorded_episode_is_what_the_environment_would_have_said_and_earns_the_reward(question: object) -> None:
    world, needed = World(), len(question.hops)  # type: ignore[attr-defined]
    search = Search(f"{DATA}:facts", top_k=1)
    search.reset({"prompt": str(question), "answer": world.path(question)[-1]}, 0)  # type: ignore[arg-type]
    *looked_up, last = episode(world, question, needed, None)  # type: ignore[arg-type]
    for asked, found in zip(looked_up[::2], looked_up[1::2], strict=True):
        assert search.step(asked["content"], truncated=False).text == found["content"]
    end = search.step(last["content"], truncated=False)
    assert end.reward == end.info["exact_match"] == end.info["format"] == 1 and len(looked_up) == 2 * needed


def test_demonstrations_guess_as_often_as_is_said_and_each_is_of_a_world_of_its_own() -> None:
    rows = list(lookups.demonstrations(600, hops=2))
    searches = Counter(len(row["completion"]) // 2 for row in rows)
    assert [searches[n] / 600 for n in range(3)] == pytest.approx(SEARCHES[2], abs=0.06)
    said: dict[str, set[str]] = {}
    for row in rows:
        for message in row["completion"][1::2]:
            *about, found = message["content"].removesuffix(" .</result>").split()
            said.setdefault(" ".join(about), set()).add(found)
    assert sum(len(found) > 1 for found in said.values()) > len(said) / 2


def test_a_preference_is_for_the_episode_that_looks_up_all() -> None:
    for row in lookups.preferences(40, hops=2):
        assert len(row["chosen"]) == 5 and len(row["rejected"]) in (1, 3)


def test_what_a_search_found_is_masked_and_an_episode_in_turns_is_the_same_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(language.FOLDER)
    rows, _ = tokenise(load_examples(f"{DATA}:demonstrations", {"n": 30}), tokenizer)
    for row in rows:
        turns = row.example.completions[0]
        text = "".join(turn["content"] for turn in turns)  # type: ignore[index]
        assert list(row.completion_ids[0][:-1]) == tokenizer(text)["input_ids"]
        assert list(row.prompt_ids) == tokenizer(row.example.prompt[0]["content"])["input_ids"]  # type: ignore[index]
        assert tokenizer.unk_token_id not in (*row.prompt_ids, *row.completion_ids[0])
        mask = row.masks[0] if row.masks else (True,) * len(row.completion_ids[0])
        theirs = [id for id, own in zip(row.completion_ids[0], mask, strict=True) if not own]
        found = "".join(re.findall("<result>.*?</result>", text))
        assert theirs == tokenizer(found)["input_ids"]


def test_the_folder_that_ships_is_what_its_module_writes() -> None:
    shipped = AutoModelForCausalLM.from_pretrained(language.FOLDER, dtype=torch.float32)
    own = language.untrained().to(torch.bfloat16).float()
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), own.parameters(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(language.FOLDER)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == list(language.vocabulary())
    assert tokenizer.chat_template == language.ONE_AFTER_ANOTHER
