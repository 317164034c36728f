"""Rows that are longer than they may be: cut, dropped, or begun at a later turn."""

import random

import pytest

from prefopt.data import parse, tokenise
from prefopt.data.fitting import later_beginnings

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def turns(letters, size=4):
    """A turn for each letter, whose words say which it is: u0000, a1111, …"""
    return [{"role": ROLES[letter], "content": letter + str(i % 10) * size} for i, letter in enumerate(letters)]


def row(prompt, *completions):
    return parse({"prompt": prompt, "completions": list(completions)}, "d.jsonl:1")


def words(tokenizer, ids):
    return tokenizer.decode(list(ids))


def beginnings(example):
    return ["".join(turn["content"][:2] for turn in later.prompt) for later in later_beginnings(example)]


def test_a_later_beginning_is_of_the_user():
    assert beginnings(row(turns("suatuau"), "x")) == ["s0u4a5u6", "s0u6"]
    assert beginnings(row(turns("u"), "x")) == beginnings(row("text", "x")) == []
    whole = parse({"messages": turns("suauatau")}, "d.jsonl:1")
    assert beginnings(whole) == ["s0u3"]
    assert [turn["content"][:2] for turn in later_beginnings(whole)[0].completions[0]] == ["a4", "t5", "a6"]


@pytest.mark.parametrize("longer", ["drop", "cut_turns"])
def test_what_has_no_turns_to_lose_is_dropped_whole(plain, longer):
    rows = [row("p" * 9, "a", "b"), row("p", "a" * 9, "b"), row("p", "a", "b"), row("p" * 5, "a" * 4, "b")]
    kept, report = tokenise(rows, plain, 5, 5, longer=longer)
    assert [len(one.prompt_ids) for one in kept] == [1, 5]
    assert report.counts == {"rows dropped: the prompt is too long": 1, "rows dropped: a completion is too long": 1}
    assert not any(one.prompt_cut or any(one.completions_cut) for one in kept)


def test_the_earliest_turns_go_and_each_that_is_left_is_whole(chatml):
    example = row(turns("suauau"), "yes", "no")
    whole, _ = tokenise([example], chatml)
    size = len(whole[0].prompt_ids)
    for most in range(size, 0, -1):
        kept, report = tokenise([example], chatml, most, longer="cut_turns")
        expected = next(
            (e for e in [example, *later_beginnings(example)] if len(tokenise([e], chatml)[0][0].prompt_ids) <= most),
            None,
        )
        if expected is None:
            assert kept == [] and report.counts == {"rows dropped: the prompt is too long": 1}
            continue
        (one,) = kept
        assert (
            one.prompt_ids == tokenise([expected], chatml)[0][0].prompt_ids
            and one.completion_ids == whole[0].completion_ids
        )
        text = words(chatml, one.prompt_ids)
        assert text.startswith("<|im_start|>system\ns0000<|im_end|>\n<|im_start|>user\nu")
        assert text.endswith("u5555<|im_end|>\n<|im_start|>assistant\n")
        assert report.counts == ({} if expected is example else {"conversations that lost their earliest turns": 1})
        assert not one.prompt_cut


def test_one_completion_of_several_turns_loses_its_first(chatml):
    example = parse({"messages": turns("suauaua")}, "d.jsonl:1")
    (whole,), _ = tokenise([example], chatml)
    (one,), report = tokenise([example], chatml, None, len(whole.completion_ids[0]) - 1, longer="cut_turns")
    assert words(chatml, one.prompt_ids).count("u3333") == 1 and "u1111" not in words(chatml, one.prompt_ids)
    assert words(chatml, one.completion_ids[0]).startswith("a4444")
    assert (
        words(chatml, [i for i, w in zip(one.completion_ids[0], one.masks[0], strict=True) if w])
        == "a4444<|im_end|>a6666<|im_end|>"
    )
    assert report.counts["conversations that lost their earliest turns"] == 1
    # Two completions answer the same turn, and what follows in one is none of the other's.
    both = row(turns("su"), turns("aua"), turns("aua", 5))
    assert tokenise([both], chatml, None, 20, longer="cut_turns")[0] == []


def test_rows_that_fit_are_the_same_whatever_becomes_of_others(chatml):
    some = random.Random(0)
    rows = [
        row(turns("su" + "au" * some.randrange(6), some.randrange(1, 9)), "y" * some.randrange(1, 30), "no")
        for _ in range(60)
    ]
    whole, _ = tokenise(rows, chatml)
    fitting = {one.row for one in whole if len(one.prompt_ids) <= 150 and len(one.completion_ids[0]) <= 20}
    assert 0 < len(fitting) < 60
    for longer in ("cut", "drop", "cut_turns"):
        kept, report = tokenise(rows, chatml, 150, 20, longer=longer)
        assert {one.row: one.completion_ids for one in kept if one.row in fitting} == {
            i: whole[i].completion_ids for i in fitting
        }
        assert all(len(one.prompt_ids) <= 150 and len(one.completion_ids[0]) <= 20 for one in kept)
        dropped = sum(count for what, count in report.counts.items() if "dropped" in what)
        assert len(kept) + dropped == 60 == report.examples
        if longer == "drop":
            assert {one.row for one in kept} == fitting
