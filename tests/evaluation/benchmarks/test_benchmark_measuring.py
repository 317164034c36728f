"""Rows of benchmarks from files, and feedback that is asked about them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny import tiny_model
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import PrefoptError, recipe
from prefopt.evaluation.benchmarks.answers import asked
from prefopt.evaluation.benchmarks.cases import Case
from prefopt.evaluation.benchmarks.implicit import ImplicitReward, Kind
from prefopt.evaluation.benchmarks.measuring import in_turns, load_cases, measure, without_prompts
from prefopt.policy import load_policy, load_tokenizer
from prefopt.types import Verdict

ROWS: dict[str, dict[str, Any]] = {
    "rewardbench": {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": 7},
    "rewardbench2": {"id": "3", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
    "rmbench": {"id": "x", "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"},
    "judgebench": {
        "pair_id": "q", "question": "p", "response_A": "b", "response_B": "a", "label": "B>A", "source": "livebench-math",
    },
}  # fmt: skip


def written(file: Path, *rows: Mapping[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("name", ROWS)
def test_a_benchmark_is_known_by_its_columns(tmp_path: Path, name: str) -> None:
    benchmark, cases = load_cases(written(tmp_path / "rows.jsonl", ROWS[name], ROWS[name]))
    assert benchmark.name == name and len(cases) == 2
    assert cases[0].prompt == "p" and cases[0].answers[0] == "a" and cases[0].group == "p"
    assert (
        cases[0].subset
        == {"rewardbench": "hep-go", "rewardbench2": "Math", "rmbench": "chat", "judgebench": "math"}[name]
    )
    assert not {"chosen", "rejected", "label"} & cases[0].columns.keys()


def test_parquet_csv_and_conversations(tmp_path: Path) -> None:
    import pandas

    table = pandas.DataFrame([ROWS["rewardbench2"]])
    table.to_parquet(tmp_path / "rows.parquet")
    assert load_cases(str(tmp_path / "rows.parquet"))[1][0].answers == ("a", "b", "c", "d")
    table.assign(chosen='["a"]', rejected='["b", "c"]').to_csv(tmp_path / "rows.csv", index=False)
    benchmark, cases = load_cases(str(tmp_path / "rows.csv"))
    assert benchmark.name == "rewardbench2" and cases[0].answers == ("a", "b", "c")
    turns = [{"role": "user", "content": "p"}]
    whole = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    _, cases = load_cases(written(tmp_path / "talk.jsonl", {"prompt": turns} | whole))
    assert cases[0].prompt == tuple(turns) and cases[0].answers == ("chosen", "rejected")


@pytest.mark.parametrize(
    ("rows", "name", "wrong"),
    [
        ([{"text": "a"}], None, r"rows\.jsonl:1: the columns \['text'\] are those of no benchmark(.|\n)*judgebench: question"),
        ([ROWS["rewardbench"]], "rewardbnch", "no benchmark 'rewardbnch'. Did you mean 'rewardbench'"),
        ([ROWS["rewardbench"]], "rmbench", "rows.jsonl:1: no row of rmbench, but of rewardbench: it has prompt"),
        ([ROWS["judgebench"] | {"label": "A"}], None, "`label` must be A>B or B>A, got 'A'"),
        ([ROWS["rmbench"] | {"chosen": ["a", "b"]}], None, "3 chosen and 3 rejected answers, one in each style; here are 2 and 3"),
        ([ROWS["rewardbench2"] | {"chosen": ["a", "b"]}], None, "only the subset Ties has several right ones"),
        ([ROWS["rewardbench2"] | {"subset": "Ties"}], None, "`id` such as ref:7 or tied:7, got '3'"),
        ([ROWS["rewardbench"], ROWS["rewardbench2"]], None, "rows.jsonl:2: no row of rewardbench, but of rewardbench2"),
        ([], None, "no rows"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, rows: Any, name: str | None, wrong: str) -> None:
    with pytest.raises(PrefoptError, match=wrong):
        load_cases(written(tmp_path / "rows.jsonl", *rows), name)


def many(rows: int) -> list[Case]:
    return [Case(f"p{n}", (f"good {n}", f"bad {n}"), 1, "pairs", f"p{n}", str(n), {}) for n in range(rows)]


def first(prompts: Sequence[Any], completions: Sequence[Sequence[Any]], rows: Any) -> Verdict:
    """Prefers whatever stands first, and says so."""
    wins = torch.tensor([[0.5, 0.9], [0.1, 0.5]]).expand(len(prompts), 2, 2)
    return Verdict(torch.tensor([[0.9, 0.1]] * len(prompts)), wins, [{"turned": 1}] * len(prompts))


def test_a_feedback_that_likes_what_stands_first_gains_nothing() -> None:
    right = [answer.prefers(0, 1) for answer in asked(first, many(400), 32, Accelerator(cpu=True))]
    assert abs(np.mean(right) - 0.5) < 0.1 and set(right) == {0.0, 1.0}


def test_answers_come_back_in_the_order_of_the_case_whatever_their_number() -> None:
    def lengths(prompts: Sequence[Any], completions: Sequence[Sequence[str]], rows: Any) -> list[list[float]]:
        return [[float(len(text)) for text in texts] for texts in completions]

    cases = [
        Case("p", tuple("abcde"[:k][j] * (j + 1) for j in range(k)), 1, "s", "p", str(k), {}) for k in (2, 2, 5, 3, 2)
    ]
    answers = list(asked(lengths, cases, 2, Accelerator(cpu=True)))
    assert [answer.scores.tolist() for answer in answers] == [[1.0 + j for j in range(len(c.answers))] for c in cases]


def test_a_whole_measurement(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 6}", "chosen": f"good {n}", "rejected": "bad", "subset": "ab"[n % 2]} for n in range(12)]
    benchmark, cases = load_cases(written(tmp_path / "rows.jsonl", *rows), limit=11)

    def odd(prompts: Sequence[Any], completions: Sequence[Sequence[str]], rows: Any) -> list[list[float | None]]:
        return [
            [None if t == "good 3" else float(t.startswith("good") and rows[0]["n"] != "x") for t in ts]
            for ts in completions
        ]

    with pytest.raises(PrefoptError, match="'n'"):  # what is not in the columns is not invented
        measure(benchmark, cases, odd, Accelerator(cpu=True), name="quiz")

    def good(prompts: Sequence[Any], completions: Sequence[Sequence[str]], rows: Any) -> list[list[float | None]]:
        return [[None if t == "good 3" else float(t.startswith("good")) for t in ts] for ts in completions]

    measured = measure(benchmark, cases, good, Accelerator(cpu=True), name="quiz")
    assert (measured.overall.value, measured.overall.rows, measured.overall.prompts) == (pytest.approx(10 / 11), 11, 6)
    assert measured.sections["a"].value == 1 and measured.sections["b"].value == pytest.approx(4 / 5)
    assert measured.numbers == {"missing": pytest.approx(1 / 11), "ties": 0, "cut": 0}
    assert measured.rows[3] == {"id": f"{tmp_path}/rows.jsonl:4", "subset": "b", "right": 1, "scores": [None, 0.0]}
    assert set(measured.evaluation.observations) == {"quiz", "quiz/a", "quiz/b"}


@pytest.mark.parametrize("kind", ["logratio", "logp", "mean_logp", "norm_logp"])
@pytest.mark.parametrize("chat", [False, True])
def test_implicit_rewards_are_those_of_the_models_own_logits(tmp_path: Path, kind: Kind, chat: bool) -> None:
    folder, other = tiny_model(tmp_path / "model", chat), tmp_path / "other"
    own = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_config(own.config)
    base.save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spec = recipe.Policy(model=(str(folder),))
    policy, reference = (
        load_policy(recipe.Policy(model=(str(f),)), load_tokenizer(spec), 0).eval() for f in (folder, other)
    )
    cases = [Case("w1 w2", (" w3 w4 w5", " w6"), 1, "s", "p", "0", {}), Case("w7", (" w8", ""), 1, "s", "q", "1", {})]
    shown = in_turns(cases) if chat else cases
    reward = ImplicitReward(
        policy, reference if kind == "logratio" else None, kind, None, None, 3, Accelerator(cpu=True)
    )
    answers = list(asked(reward, shown, 2, Accelerator(cpu=True)))

    def logps(model: Any, prompt: str, answer: str) -> torch.Tensor:
        before = f"user {prompt} assistant" if chat else prompt  # which is how the template begins an answer
        start, ids = (tokenizer(text, return_tensors="pt").input_ids for text in (before, before + answer))
        ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
        with torch.no_grad():
            every = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        return every[start.shape[1] - 1 :].double()

    def expected(prompt: str, answer: str) -> float:
        mine = logps(own, prompt, answer)
        other_one = logps(base, prompt, answer)
        return {
            "logratio": (mine - other_one).sum(),
            "logp": mine.sum(),
            "mean_logp": mine.mean(),
            "norm_logp": -mine.norm(),
        }[kind].item()

    assert answers[0].scores == pytest.approx([expected("w1 w2", answer) for answer in cases[0].answers], abs=1e-4)
    assert answers[1].scores[0] == pytest.approx(expected("w7", " w8"), abs=1e-4) and math.isnan(answers[1].scores[1])


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    spec = recipe.Policy(model=(str(tiny_model(tmp_path / "model")),))
    policy = load_policy(spec, load_tokenizer(spec), 0).eval()
    reward = ImplicitReward(policy, None, "logp", 2, 3, 4, Accelerator(cpu=True))
    cases = [
        Case("w1 w2 w3", (" w4", " w5"), 1, "s", "p", "0", {}),
        Case("w1", (" w2 w3 w4 w5", " w5"), 1, "s", "q", "1", {}),
    ]
    assert [answer.cut for answer in asked(reward, cases, 2, Accelerator(cpu=True))] == [2, 1]
    assert [answer.cut for answer in asked(reward, without_prompts(cases), 2, Accelerator(cpu=True))] == [0, 1]
