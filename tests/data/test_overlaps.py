"""Held-out prompts that are trained on, and rows that contradict themselves, are counted."""

from prefopt.data import parse, tokenise
from prefopt.data.overlaps import Overlap, overlap
from prefopt.data.repeats import DISAGREEING


def asked(*prompts):
    return [parse({"prompt": prompt}, f"rows.jsonl:{i}") for i, prompt in enumerate(prompts, 1)]


def test_prompts_that_are_trained_on_are_counted_also_where_case_and_blanks_differ():
    train = asked("What is it?", "Who?", [{"role": "user", "content": "Why not?"}])
    assert overlap(asked("Where?", "When?"), train) == Overlap(0, 0, "")
    held_out = asked("Where?", "who? ", "Who?", " what\nIS  it?", [{"role": "user", "content": "why  not?"}], "Who?")
    assert overlap(held_out, train) == Overlap(2, 3, "rows.jsonl:2")
    assert overlap([], train) == overlap(held_out, []) == Overlap(0, 0, "")


def test_another_task_of_the_same_prompt_is_not_trained_on():
    train, held_out = ([parse({"prompt": "Play.", "task": task}) for task in tasks] for tasks in ("ab", "bcd"))
    assert overlap(held_out, train)[:2] == (1, 0)


def test_texts_without_a_prompt_are_compared_by_the_text():
    train, held_out = ([parse({"text": text}) for text in texts] for texts in (["A b.", "c"], ["a b.", "d"]))
    assert overlap(held_out, train)[:2] == (0, 1)


def test_scores_against_votes_are_counted(plain):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "votes": [3, 7]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "votes": [5, 5]},
        {"prompt": "r", "chosen": "a", "rejected": "b", "votes": [7, 3]},
        {
            "prompt": "s",
            "completions": ["a", "b", "c"],
            "scores": [3, 1, None],
            "preference": [[0.5, 0.2, 0.9], [0.8, 0.5, 0.9], [0.1, 0.1, 0.5]],
        },
    ]
    assert tokenise([parse(row) for row in rows], plain)[1].counts[DISAGREEING] == 2
    assert DISAGREEING not in tokenise([parse(row) for row in rows[1:3]], plain)[1].counts
