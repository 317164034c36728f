"""Search: what is found, what acts, what is rewarded, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from prefopt import PrefoptError, recipe
from prefopt.environments import Search, environment_factory
from prefopt.environments.search import Index, f1_score, has_format, normalised

TEXTS = ("Ann lives in Oslo.", "Oslo is in Norway.", "Bob lives in Rome.", "Rome is in Italy. So is Milan.")
ASKS = "<think> I look for Ann </think><search> where Ann lives </search>"
KNOWS = "<think> I know it </think><answer> {} </answer>"


def begun(answer: Any = "Norway", texts: Any = TEXTS, **more: Any) -> Search:
    search = Search(Index(texts) if texts else None, **more)
    assert search.reset({"prompt": "which country does Ann live in?", "answer": answer}, 0) is None
    return search


def bm25(texts: tuple[str, ...], query: str) -> list[float]:
    """By the formula: Lucene's idf, k₁ = 1.5, b = .75; its factor k₁ + 1 changes no order and is left out by bm25s."""
    documents = [text.lower().replace(".", " ").split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for term in query.lower().split():
            having = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = words.count(term)
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["where Ann lives", "Oslo is in", "rome", "milan So is", "in"])
def test_the_order_is_that_of_bm25(query: str) -> None:
    scores = bm25(TEXTS, query)
    best = sorted((number for number in range(len(TEXTS)) if scores[number] > 0), key=lambda number: -scores[number])
    assert Index(TEXTS).find(query, 9) == [TEXTS[number] for number in best]


def test_equally_good_texts_come_in_their_order_and_others_not_at_all() -> None:
    same = Index(("a b", "x y", "b a", "a b"))
    assert same.find("A, b?", 2) == ["a b", "b a"] and same.find("x", 9) == ["x y"]
    many = Index([f"same{'!' * number}" + " same" * (number % 2) for number in range(60)])
    assert many.find("same", 60) == [*many.texts[1::2], *many.texts[::2]]
    assert same.find("nothing of it", 9) == same.find("?!", 9) == same.find("", 9) == []


def test_two_searches_and_an_answer() -> None:
    search = begun(top_k=1)
    one = search.step(ASKS, truncated=False)
    assert one == ("<result>Ann lives in Oslo.</result>", 0.0, False, {"searches": 1.0})
    two = search.step("<think> </think> <search>Oslo is in</search>", truncated=False)
    assert two.text == "<result>Oslo is in Norway.</result>" and not two.done
    last = search.step(KNOWS.format("norway"), truncated=False)
    assert last == ("", 1.0, True, {"searches": 0.0, "exact_match": 1.0, "f1": 1.0, "format": 1.0})
    assert set(last.info) == set(search.logs)


@pytest.mark.parametrize(
    ("answer", "written", "reward", "right_format"),
    [
        ("Norway", KNOWS.format("the Norway!"), 1.0, True),
        (["Norge", "Norway"], KNOWS.format("Norway"), 1.0, True),
        ("New York City", KNOWS.format("York city"), 0.8, True),
        ("Norway", KNOWS.format("Italy"), 0.1, True),
        ("Norway", KNOWS.format("so it is \\boxed{Norway}"), 1.0, True),
        ("Norway", "</think><answer>Norway</answer>", 1.0, True),  # the prompt began to think
        ("Norway", "<answer>Norway</answer>", 1.0, False),
        ("Norway", "<answer>Italy</answer>", 0.0, False),
        ("Norway", "<think></think><result>Norway</result><answer>Italy</answer>", 0.0, False),
        ("Norway", "<think></think><search>Oslo<answer>Italy</answer>", 0.0, False),
        ("Norway", "<think>Norway</think>", 0.0, False),
        ("yes", KNOWS.format("yes yes"), 0.1, True),
    ],
)
def test_f1_or_a_tenth_for_the_format(answer: Any, written: str, reward: float, right_format: bool) -> None:
    turn = begun(answer).step(written, truncated=False)
    assert turn.done and turn.reward == pytest.approx(reward) and turn.info["format"] == right_format
    assert turn.info["exact_match"] == (reward == 1)


def test_the_format_is_that_of_the_whole_episode() -> None:
    search = begun()
    search.step("<result>made up</result><search>Oslo</search>", truncated=False)
    assert search.step(KNOWS.format("Italy"), truncated=False).info["format"] == 0
    assert has_format("<think>a</think><search>q</search><think>b</think><answer>c</answer>")
    assert not has_format("<think>a</think><answer>b</answer><answer>c</answer>")


@pytest.mark.parametrize("written", [ASKS, KNOWS.format("Norway"), ASKS[:20]])
def test_a_turn_that_was_cut_neither_searches_nor_answers(written: str) -> None:
    turn = begun().step(written, truncated=True)
    assert turn.done and turn.reward == 0 and turn.text == "" and turn.info["searches"] == 0


def test_with_nothing_to_search_the_protocol_is_the_same_and_results_are_empty() -> None:
    search = begun(texts=())
    assert search.step(ASKS, truncated=False) == ("<result></result>", 0.0, False, {"searches": 1.0})
    assert search.step(KNOWS.format("Norway"), truncated=False).reward == 1


def test_results_have_at_most_so_many_texts_and_characters() -> None:
    assert begun(top_k=2).step("<search>in</search>", truncated=False).text.count("\n") == 1
    cut = begun(characters=5).step("<search>Rome</search>", truncated=False).text
    assert len(cut) == len("<result></result>") + 5


def test_f1_and_normalisation_are_hotpotqas() -> None:
    assert normalised("The  Great, Wall.") == "great wall"
    assert f1_score("a great wall", "the Great Wall of China") == pytest.approx(2 * 2 / (2 + 4))
    assert f1_score("no", "no way") == 0 and f1_score("", "x") == 0 and f1_score("b b", "b") == pytest.approx(2 / 3)


def test_files_and_folders_are_read_once_in_a_process(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "b.txt").write_text("Bob lives in Rome.")
    (folder / "below" / "a.md").write_text("Ann lives in Oslo.")
    (folder / "c.png").write_bytes(b"\xff")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"contents": "{text}"}}\n' for text in TEXTS))
    assert Search(str(folder))._index.find("lives", 9) == ["Bob lives in Rome.", "Ann lives in Oslo."]
    spec = recipe.Environment.model_validate({"name": "Search", "texts": str(rows), "column": "contents"})
    one, two = environment_factory(spec)(), environment_factory(spec)()
    rows.unlink()
    assert one is not two and one._index is two._index is environment_factory(spec)()._index  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        (
            {"texts": "./nowhere"},
            r"texts ./nowhere: there is no such folder \(looked from .*\), and files of rows end in .jsonl",
        ),
        ({"texts": "EMPTY"}, r"EMPTY has no .txt or .md files to search"),
        ({"texts": "LATIN"}, r"a.txt is not UTF-8 .*; save it as UTF-8"),
        ({"texts": "ROWS"}, r"rows.jsonl:1: no text in column 'text'; the row has 'contents', 'blank'. `column` names"),
        ({"texts": "ROWS", "column": "blank"}, "there is no word to be found in the texts"),
        ({"texts": ["a text"]}, "texts names a folder, a file or a function, or is an Index, not list; .* makes one"),
        ({"texts": "ROWS", "top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_refusals_name_what_is_wrong_and_where(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    places = {"EMPTY": tmp_path / "EMPTY", "LATIN": tmp_path / "LATIN", "ROWS": tmp_path / "rows.jsonl"}
    places["EMPTY"].mkdir()
    places["LATIN"].mkdir()
    (places["LATIN"] / "a.txt").write_bytes(b"caf\xe9")
    places["ROWS"].write_text('{"contents": "x", "blank": " "}\n')
    texts = str(places[name]) if (name := str(fields["texts"])) in places else fields["texts"]
    with pytest.raises((PrefoptError, ValueError), match=message):
        environment_factory(recipe.Environment.model_validate({"name": "Search", **fields, "texts": texts}))


@pytest.mark.parametrize("answer", [None, [], 3, ["a", 3]])
def test_a_row_needs_an_answer(answer: Any) -> None:
    with pytest.raises(PrefoptError, match=r"a row needs `answer`.*'which country does Ann"):
        begun(answer)


def test_no_answer_is_not_the_one_of_which_nothing_is_left_to_compare() -> None:
    env = Search()
    for text, exact in (("nothing", 0.0), ("<answer>a</answer>", 1.0)):
        env.reset({"prompt": "Which blood type?", "answer": "A"}, 0)
        assert env.step(text, truncated=False).info["exact_match"] == exact
