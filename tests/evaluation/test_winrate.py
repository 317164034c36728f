"""Win rates: who meets whom, what a verdict is worth, and what is left of a win at equal length."""

import json
import math

import numpy as np
import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from accelerate import Accelerator
from rich.console import Console
from scipy.special import expit

from prefopt import PrefoptError, load_recipe, recipe, run
from prefopt.data import formats, tokenise
from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.evaluator import Evaluator
from prefopt.evaluation.intervals import Observations, estimate
from prefopt.evaluation.win_rates import Contest, Sample, key_of, key_of_sample, length_controlled, rates, wins
from prefopt.policy import Policy, Reference
from prefopt.runs.folder import RunFolder
from prefopt.runs.inspecting import evaluate, trained
from prefopt.types import Verdict


def prompts(tokenizer, *texts):
    return tokenise([formats.parse({"prompt": text}) for text in texts], tokenizer)[0]


class Words:
    """Scores texts by their words, the empty one not at all; remembers what it was asked."""

    def __init__(self, compares=False):
        self.compares, self.asked = compares, []

    def __call__(self, prompts, completions, rows):
        self.asked += zip(prompts, completions, [row["ended"] for row in rows], strict=True)
        scores = torch.tensor([[float(len(text.split())) or math.nan for text in pair] for pair in completions])
        if not self.compares:
            return Verdict(scores)
        return Verdict(scores, torch.sigmoid(scores[:, :, None] - scores[:, None, :]).nan_to_num(0.5))


def samples(*texts):
    return [Sample(text, True) for text in texts]


def test_the_higher_score_wins_and_equal_scores_are_a_tie(tokenizer):
    rows = prompts(tokenizer, "the film", "a room")
    mine = [samples("good", "very good film"), samples("bad", "fine")]
    theirs = [samples("very bad", "bad"), samples("dull")]
    judge = Words()
    assert wins(judge, rows, mine, theirs, Accelerator(cpu=True)).tolist() == [[0, 1], [0.5, 0.5]]
    assert judge.asked[1] == ("the film", ["very good film", "bad"], [True, True])
    assert judge.asked[3] == ("a room", ["fine", "dull"], [True, True]), "theirs begin again where they are fewer"


def test_one_who_compares_is_read_as_a_probability(tokenizer):
    (rows, mine), theirs = (prompts(tokenizer, "the film"), [samples("good", "a very good film")]), [samples("not bad")]
    assert wins(Words(compares=True), rows, mine, theirs, Accelerator(cpu=True))[0].tolist() == pytest.approx(
        [expit(-1), expit(2)]
    )


def test_no_verdict_and_nobody_to_meet_are_neither_won_nor_lost(tokenizer):
    rows = prompts(tokenizer, "the film", "a room", "the food")
    mine = [samples("", "good"), samples("good", "good"), samples("", "bad")]
    theirs = [samples("bad", ""), [], samples("", "good .")]
    for judge in (Words(), Words(compares=True)):
        won = wins(judge, rows, mine, theirs, Accelerator(cpu=True))
        assert won[:2].isnan().all()
        assert won[2, 0] == 0.5 and won[2, 1] < 0.5, "two equal texts are a tie that needs no verdict"
        assert len(judge.asked) == 3
    observed = rates(won, torch.ones_like(won))
    assert {name: value.isnan().tolist() for name, value in observed.items()} == dict.fromkeys(
        observed, won.isnan().tolist()
    )
    assert observed["ties"][2].tolist() == [1, 0]


def test_all_verdicts_missing(tokenizer):
    assert all(value.isnan().all() for value in rates(torch.full((2, 1), math.nan), torch.ones(2, 1)).values())


def simulated(n, theta, phi, seed, soft=False):
    """Wins of a judge who likes length, and the difference in length."""
    draw = np.random.default_rng(seed)
    longer = draw.normal(20, 40, n).round()
    p = expit(theta + phi * np.tanh(longer / longer.std()))
    return (p if soft else (draw.random(n) < p).astype(float)), longer


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 0.0), (0.0, 2.0), (-0.5, 1.5), (1.0, -1.0)])
def test_what_generated_the_wins_is_found_again(theta, phi):
    won, longer = simulated(20_000, theta, phi, seed=1, soft=True)
    assert length_controlled(won, longer).mean() == pytest.approx(expit(theta), abs=2e-3)
    won, longer = simulated(20_000, theta, phi, seed=1)
    assert length_controlled(won, longer).mean() == pytest.approx(expit(theta), abs=0.02)
    if phi == 2:
        assert won.mean() > 0.6, "what is controlled for"


def test_the_maximum_is_that_of_a_grid():
    """Without derivatives: the penalised likelihood, as the docstring has it, on a fine grid."""
    won, longer = simulated(40, 0.4, 1.0, seed=2)
    grid = np.linspace(-3, 3, 601)
    theta, phi = grid[:, None, None], grid[None, :, None]
    said = theta + phi * np.tanh(longer / longer.std())
    loss = (np.log1p(np.exp(said)) - won * said).sum(-1) + (theta[..., 0] / 10) ** 2 / 2 + (phi[..., 0] / 2.5) ** 2 / 2
    best = np.unravel_index(loss.argmin(), loss.shape)[0]
    assert length_controlled(won, longer).mean() == pytest.approx(expit(grid[best]), abs=0.003)


def test_equal_lengths_leave_the_win_rate():
    won = np.array([1.0, 1.0, 0.0, 0.5] * 25)
    values = length_controlled(won, np.zeros(100))
    assert values.mean() == pytest.approx(won.mean(), abs=1e-3)
    assert values - values.mean() == pytest.approx(won - won.mean(), abs=5e-3)


def test_wins_that_length_or_nothing_tells_apart_stay_finite():
    longer = np.array([5.0, -5.0] * 20)
    assert length_controlled((longer > 0).astype(float), longer).mean() == pytest.approx(0.5, abs=1e-6)
    always = length_controlled(np.ones(40), longer)
    assert np.isfinite(always).all() and 0.9 < always.mean() < 1


def test_the_interval_is_that_of_refitting():
    """Against a bootstrap that fits anew on every resample."""
    won, longer = simulated(300, 0.5, 1.0, seed=3)
    values = length_controlled(won, longer)
    quick = estimate(Observations(values, np.ones(300), [str(i) for i in range(300)]))
    draw = np.random.default_rng(0)
    picks = [draw.integers(0, 300, 300) for _ in range(300)]
    low, high = np.quantile([length_controlled(won[pick], longer[pick]).mean() for pick in picks], [0.025, 0.975])
    assert (quick.low, quick.high) == pytest.approx((low, high), abs=0.015)
    assert high - low > 0.1


@pytest.fixture
def policies(lm_folder, tokenizer):
    from transformers import AutoModelForCausalLM

    return [Policy(AutoModelForCausalLM.from_pretrained(lm_folder).double(), tokenizer).eval() for _ in range(2)]


def test_a_policy_that_is_its_reference_wins_half(policies, tokenizer):
    rows = prompts(tokenizer, "the film was", "a room is", "the food")
    settings = recipe.Evaluate(completions=300, batch_size=3, sampling=recipe.Sampling(max_tokens=3))
    evaluator = Evaluator(
        rows, settings, Accelerator(cpu=True), Reference(policies[1]), contest=Contest(Words(compares=True))
    )
    found = evaluator(policies[0])
    won = found.observations["win_rate"].values
    assert abs(won.mean() - 0.5) < 4 * won.std() / math.sqrt(len(won))
    texts = [(sample["completion"], sample["against"]) for sample in found.samples]
    assert sum(a == b for a, b in texts) < 0.5 * len(texts), "their noise is not the policy's"
    judge = Words(compares=True)
    for sample in found.samples[:100]:
        pair = [sample["completion"], sample["against"]]
        p = judge(["x"], [pair], [{"ended": []}])
        if pair[0] == pair[1]:
            assert sample["win_rate"] == 0.5
        elif p.scores.isnan().any():
            assert math.isnan(sample["win_rate"])
        else:
            assert sample["win_rate"] == pytest.approx(p.preference[0, 0, 1].item())
    assert found.numbers["win_rate_missing"] == np.mean([math.isnan(s["win_rate"]) for s in found.samples]) > 0
    assert [s["against"] for s in evaluator(policies[0]).samples] == [s["against"] for s in found.samples]


def test_samples_of_one_prompts_tasks_are_told_apart_and_meet_the_same_task(policies, tokenizer):
    parsed = [formats.parse({"prompt": "the film was", "task": task}) for task in ("easy", "hard")]
    rows = tokenise(parsed, tokenizer)[0]
    settings = recipe.Evaluate(completions=1, sampling=recipe.Sampling(max_tokens=3))
    others = {key_of(one): [Sample(f"of {one.columns['task']}", True)] for one in parsed}
    contest = Contest(Words(), others)
    kept = Evaluator(rows, settings, Accelerator(cpu=True), contest=contest)(policies[0])
    again = Evaluation.from_json(kept.to_json())
    assert [(s["task"], s["against"]) for s in again.samples] == [("easy", "of easy"), ("hard", "of hard")]
    assert [key_of_sample(sample) for sample in again.samples] == list(others)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, data, a judge, and a finished run whose evaluation was judged."""
    home = tmp_path_factory.mktemp("winrate")
    model, data = tiny_model(home / "lm"), tiny_pairs(home / "pairs.jsonl", rows=60)
    (home / "judge.py").write_text(
        "def longest(prompts, texts, rows):\n    return [[len(t.split()) or None for t in row] for row in texts]\n"
    )
    more = {
        "train": "{steps: 2, batch_size: 8, lr: 3e-2, threads: 1}",
        "evaluate": f"{{prompts: 6, every: 1, sampling: {{max_tokens: 6}}, judge: '{home / 'judge.py'}:longest'}}",
    }
    file = tiny_recipe(home, model, data, **more)
    run(load_recipe(file), folder=home / "one", console=Console(quiet=True))
    return home


def last(folder):
    return json.loads(sorted((folder / "evaluations").glob("test-*"))[-1].read_text())


def test_a_run_is_judged_against_its_reference(home):
    summary = json.loads((home / "one" / "summary.json").read_text())
    assert {"win_rate", "win_rate_length_controlled", "ties"} <= summary["after"].keys() & summary["change"].keys()
    lines = [json.loads(line) for line in (home / "one" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/win_rate" in line for line in lines)
    kept = last(home / "one")
    known = [s["win_rate"] for s in kept["samples"] if s["win_rate"] is not None]
    assert summary["after"]["win_rate"]["value"] == pytest.approx(sum(known) / len(known))


def test_another_run_may_be_the_opponent(home):
    against = [f"evaluate.against={home / 'one'}", "train.lr=1e-3"]
    run(load_recipe(home / "recipe.yaml", against), folder=home / "two", console=Console(quiet=True))
    theirs = {json.dumps(s["prompt"]): s["completion"] for s in last(home / "one")["samples"]}
    samples = last(home / "two")["samples"]
    assert samples and all(s["against"] == theirs[json.dumps(s["prompt"])] for s in samples)
    lines = [json.loads(line) for line in (home / "two" / "metrics.jsonl").read_text().splitlines()]
    assert not any("validation/win_rate" in line for line in lines), "the other run kept no samples of validation rows"
    again = evaluate(trained(home / "two"), Console(quiet=True))
    assert [s["win_rate"] for s in again.samples] == pytest.approx(
        [math.nan if s["win_rate"] is None else s["win_rate"] for s in samples], nan_ok=True
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["evaluate.against={home}"], "holds no samples of a policy on test rows"),
        (["evaluate.judge=null", "evaluate.against={home}/one"], "say who judges"),
        (["evaluate.prompts=0"], "nothing is sampled"),
        (["evaluate.judge=Juge"], "evaluate.judge: unknown feedback 'Juge'"),
        (["evaluate.judge.shape=Normalise"], "evaluate.judge: Normalise has numbers that move"),
    ],
)
def test_contests_that_cannot_be_are_refused_before_the_policy_is_loaded(home, overrides, words, monkeypatch):
    monkeypatch.setattr("prefopt.runs.preparing.load_policy", None)
    with pytest.raises(PrefoptError, match=words):
        run(
            load_recipe(home / "recipe.yaml", [o.replace("{home}", str(home)) for o in overrides]),
            folder=home / "never",
        )


def test_samples_are_found_by_their_prompt(home):
    found = RunFolder(home / "one").samples()
    assert len(found) == 6 and all(isinstance(key, str) and len(texts) == 1 for key, texts in found.items())
