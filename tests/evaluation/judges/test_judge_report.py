import json

import pytest
from _server import Loopback
from rich.console import Console

from prefopt import PrefoptError
from prefopt.cli import main
from prefopt.evaluation.judges.report import JudgeRecipe, report
from prefopt.feedback import make_feedback
from prefopt.recipe import Feedback, load

QUIET = Console(quiet=True)

PAIRS = {"question": "{{ completion_a }}\n{{ completion_b }}", "labels": ["A", "B"]}

LENGTH = """
def length(prompts, completions, rows):
    return [[float(len(text)) for text in texts] for texts in completions]

def first_word(prompts, completions, rows):
    return [[None if text.startswith("?") else float(text.split()[0]) for text in texts] for texts in completions]
"""


@pytest.fixture
def recipe_of(tmp_path):
    """A judge recipe of these rows."""
    (tmp_path / "rules.py").write_text(LENGTH)

    def make(rows, judge="rules.py:first_word", **more):
        (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        content = {"judge": judge, "source": {"data": "rows.jsonl"}, "threads": 1, **more}
        file = tmp_path / "judge.yaml"
        file.write_text(json.dumps(content))
        return file

    return make


def singles(n=30):
    """Texts that begin with what people think of them."""
    return [
        {
            "prompt": "",
            "completions": [f"{i - n // 2} points" + "!" * (i % 3)],
            "scores": [i - n // 2],
            "ratings": [[i - n // 2] * 3],
        }
        for i in range(n)
    ]


def pairs(n=40):
    """The first is better in every other pair; four of five raters see it, and the longer one is always the worse one."""
    found = []
    for i in range(n):
        good, bad = ("2 yes", [1, 1, 1, 1, 0]), ("1 no, and at length", [0, 0, 0, 0, 1])
        both = (good, bad) if i % 2 else (bad, good)
        found.append(
            {
                "prompt": f"q{i}",
                "completions": [t for t, _ in both],
                "scores": [sum(r) for _, r in both],
                "ratings": [r for _, r in both],
            }
        )
    return found


def test_a_judge_of_single_texts(recipe_of):
    found = report(load(JudgeRecipe, recipe_of(singles())), QUIET)
    assert found.estimates["auc"].value == 1
    assert found.estimates["rank_correlation"].value == pytest.approx(1)
    assert found.estimates["auc_left_out_raters"].value == 1
    assert found.estimates["consistency"].value == 1
    assert found.numbers["texts"] == 30


def test_what_has_no_verdict_is_counted_and_no_score(recipe_of):
    rows = singles()
    rows[3]["completions"] = ["? who knows"]
    found = report(load(JudgeRecipe, recipe_of(rows)), QUIET)
    assert found.numbers["no_verdict"] == 1
    assert found.estimates["auc"].prompts == 29


def test_a_judge_of_pairs_beside_people(recipe_of):
    found = report(load(JudgeRecipe, recipe_of(pairs())), QUIET).estimates
    assert found["accuracy"].value == 1
    assert found["agreement_ceiling"].value == pytest.approx(
        0.8 * 0.8 + 0.2 * 0.2 * 0 + 0.5 * 0.32
    )  # P(1 ≻ 0) + ½ P(tie)
    assert found["agreement_with_a_rater"].value == found["agreement_ceiling"].value
    assert found["accuracy_left_out_raters"].value == pytest.approx(
        0.8
    )  # four of five agree with the rest, one does not
    assert found["prefers_longer"].value == 0
    longest = report(load(JudgeRecipe, recipe_of(pairs(), "rules.py:length")), QUIET).estimates
    assert longest["accuracy"].value == 0
    assert longest["prefers_longer"].value == 1


def test_a_judge_with_a_place_it_likes(recipe_of, scripted, tmp_path):
    """d = ±2 by what is better, b = 3 for the first: one order says the first always; the average sees through it."""
    from prefopt.data import load_examples
    from prefopt.evaluation.judges.ratings import Judgements, RatedRow, measure
    from prefopt.feedback.judges import Answer
    from prefopt.feedback.judges.judge import Judge

    def say(question):
        text = question.turns[-1][1]
        d = 2.0 if text.index("2 yes") < text.index("1 no") else -2.0
        return Answer(logps=(d + 3 - 10, -10.0))

    recipe_of(pairs())
    rows = [RatedRow.of(example) for example in load_examples([str(tmp_path / "rows.jsonl")])]
    judge = Judge(PAIRS, "pairwise", backend=scripted(say))
    verdict = judge([r.example.prompt for r in rows], [r.texts for r in rows], [{}] * len(rows))
    found, _ = measure(rows, [Judgements.of([verdict], rows)], 0.0, 0.95, 0)
    assert found["accuracy"].value == 1
    assert found["prefers_first"].value == 1
    assert found["turned_by_order"].value == 1
    assert found["accuracy_one_order"].value == 0.5


def test_rows_that_say_nothing_of_people(recipe_of):
    with pytest.raises(PrefoptError, match=r"rows\.jsonl.*give `ratings`"):
        report(load(JudgeRecipe, recipe_of([{"prompt": "q", "completions": ["1 a", "2 b"]}])), QUIET)


def test_the_command_keeps_the_report_and_refuses(recipe_of, tmp_path, capsys):
    file, out = recipe_of(singles(), require={"auc": [0.9, None]}), tmp_path / "report.json"
    main(["evaluate", str(file), "--out", str(out)])
    assert "auc" in capsys.readouterr().out
    assert json.loads(out.read_text())["estimates"]["auc"]["value"] == 1
    with pytest.raises(SystemExit):
        main(["evaluate", str(file), "require={auc: [null, 0.2]}", "--out", str(tmp_path / "other.json")])
    assert "at most 0.2" in capsys.readouterr().err
    assert (tmp_path / "other.json").exists()  # what was measure is kept


def test_a_recipe_refuses_a_judge_without_a_good_report(recipe_of, tmp_path):
    """A judge may be used where its own report keeps the recipe's bounds, and nowhere else."""
    rubric = {"question": "{{ completion }} =>", "labels": ["good", "bad"]}
    from prefopt.testbeds.pocket.language import FOLDER

    judge = {"name": "Judge", "model": str(FOLDER), "rubric": rubric, "mode": "pointwise"}
    recipe = load(JudgeRecipe, recipe_of(singles(12), judge, repeats=1))
    file = tmp_path / "report.json"
    file.write_text(report(recipe, QUIET).to_json())

    def check(**more):
        from prefopt.feedback import check_feedback

        check_feedback(Feedback(**(judge | {"report": str(file)} | more)))

    check(require={"auc": [0.0, 1.0]})
    with pytest.raises(PrefoptError, match=r"not trusted: auc is .* at least 1\.1"):
        check(require={"auc": [1.1, None]})
    with pytest.raises(PrefoptError, match="no estimate 'acu'"):
        check(require={"acu": [0.0, None]})
    with pytest.raises(PrefoptError, match="another judge: it differs in scale"):
        check(scale=3.0)
    with pytest.raises(PrefoptError, match="no judge report"):
        check(report=str(tmp_path / "none.json"))
    with pytest.raises(PrefoptError, match="name the file in report"):
        check(report=None, require={"auc": [0.5, None]})
    assert make_feedback(Feedback(**judge), None)


def test_a_report_is_held_against_the_model_that_answers_behind_the_server_now(recipe_of, tmp_path, caplog):
    """The address and the name are those of the report, so only what the server says of its model can tell."""
    rubric = {"question": "{{ completion }}", "labels": ["A", "B"]}
    with Loopback().running() as server:
        server.says = {"model": "m-2026-01"}
        judge = {"name": "Judge", "rubric": rubric, "mode": "pointwise", "cache": str(tmp_path / "answers")}
        judge |= {"server": {"model": "m", "base_url": server.url, "retries": 0}}
        made = report(load(JudgeRecipe, recipe_of(singles(12), judge, repeats=1)), QUIET)
        assert [json.loads(json.loads(model)[1]) for model in made.models] == [{"model": "m-2026-01"}]
        file = tmp_path / "report.json"
        file.write_text(made.to_json())
        ask = (["q"], [["an answer"]], [{}])
        make_feedback(Feedback(**judge, report=str(file)), None)(*ask)
        assert "another model" not in caplog.text
        server.says = {"model": "m-2026-02"}
        trusted = make_feedback(Feedback(**judge | {"cache": str(tmp_path / "fresh")}, report=str(file)), None)
        trusted(*ask)
        trusted(["q"], [["one more"]], [{}])
    said = [record.message for record in caplog.records if "report" in record.message]
    assert said == [
        f"{file} is the report of another model: now model m-2026-02 answers behind the judge's server, and it was measured with "
        "model m-2026-01. Make a new one"
    ]


def test_votes_of_raters_say_what_their_ratings_say(recipe_of):
    """Also where a rater saw no more than one of the two: nobody can be left out of what nobody compared."""
    rated = pairs()
    voted = [
        {
            "prompt": row["prompt"],
            "completions": row["completions"],
            "votes": [list(v) for v in zip(*row["ratings"], strict=True)],
        }
        for row in rated
    ]
    voted[0]["votes"] = [*voted[0]["votes"], [None, 1]]
    by_ratings, by_votes = (report(load(JudgeRecipe, recipe_of(rows)), QUIET).estimates for rows in (rated, voted))
    assert (
        by_votes["accuracy_left_out_raters"].value == by_ratings["accuracy_left_out_raters"].value == pytest.approx(0.8)
    )
