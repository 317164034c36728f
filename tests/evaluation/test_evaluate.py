import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from prefopt import PrefoptError, recipe
from prefopt.data import formats, tokenise
from prefopt.evaluation.evaluation import Evaluation
from prefopt.evaluation.evaluator import Evaluator, _ahead
from prefopt.evaluation.intervals import Observations
from prefopt.feedback import MissingEOS, Transformed
from prefopt.policy import Policy, Reference, Scorer
from prefopt.types import Verdict


class Shout:
    """Scores a completion by its words; has no verdict of the empty one."""

    def __call__(self, prompts, completions, rows):
        words = [[float(len(text.split())) or math.nan for text in row] for row in completions]
        return Verdict(torch.tensor(words))


@pytest.fixture
def models(lm_folder, tokenizer):
    policy, other = (Policy(AutoModelForCausalLM.from_pretrained(lm_folder).double(), tokenizer) for _ in range(2))
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(0.9)
    return policy.eval(), Reference(other.eval())


@pytest.fixture
def rows(tokenizer):
    pairs = [
        ("the film was", "great", "very dull"),
        ("a room is", "warm and quick", "cold"),
        ("the food", "good .", "bad ."),
    ]
    keys = ("prompt", "chosen", "rejected")
    return tokenise([formats.parse(dict(zip(keys, pair, strict=True))) for pair in pairs], tokenizer)[0]


@pytest.fixture
def measured(models, rows):
    settings = recipe.Evaluate(completions=400, batch_size=3, sampling=recipe.Sampling(max_tokens=2))
    return Evaluator(rows, settings, Accelerator(cpu=True), models[1], Shout())(models[0])


def test_log_ratios_by_the_models_own_words(measured, models, rows):
    policy, reference = models

    def sequence(model, prompt, completion):
        ids = torch.tensor([[*prompt, *completion]])
        said = model.model(input_ids=ids).logits[0].log_softmax(-1)
        return sum(said[len(prompt) + i - 1, token].item() for i, token in enumerate(completion))

    for k, name in enumerate(("chosen", "rejected")):
        by_hand = [
            sequence(policy, row.prompt_ids, row.completion_ids[k])
            - sequence(reference.policy, row.prompt_ids, row.completion_ids[k])
            for row in rows
        ]
        assert measured.observations[f"logratio_{name}"].values.tolist() == pytest.approx(by_hand, abs=1e-9)
    tokens = [len(row.completion_ids[0]) for row in rows]
    assert measured.observations["nll"].weights.tolist() == tokens


def test_kl_estimates_are_those_of_the_distributions(measured, models, rows):
    """Against the exact KL of two tokens, by going through all first ones."""

    def said(model, prompt):
        return model.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)

    def exact(prompt, depth=2):
        mine, other = said(models[0], prompt), said(models[1].policy, prompt)
        here = (mine.exp() * (mine - other)).sum().item()
        if depth == 1:
            return here
        return here + sum(p * exact([*prompt, t], 1) for t, p in enumerate(mine.exp().tolist()) if t != 0)  # 0 ends it

    with torch.no_grad():
        expected = np.array([exact(list(row.prompt_ids)) for row in rows])
    for name in ("kl", "kl_k3"):
        found = measured.observations[name].values.reshape(len(rows), -1)
        error = found.std(1) / math.sqrt(found.shape[1])
        assert (abs(found.mean(1) - expected) < 4 * error).all(), name
        assert (expected > 4 * error).any(), "too small to see"
    assert (measured.observations["kl_k3"].values >= 0).all()


def test_no_verdict_is_left_out_and_survives_json(measured):
    scores = [sample["gold"] for sample in measured.samples]
    missing = sum(math.isnan(score) for score in scores)
    assert missing > 0, "the tiny model should end at once now and then"
    assert len(measured.observations["gold"].values) == len(scores) - missing
    text = measured.to_json()
    json.loads(text, parse_constant=pytest.fail)
    again = Evaluation.from_json(text)
    assert again.estimates() == measured.estimates()
    assert again.numbers == measured.numbers


def test_a_number_that_is_none(tmp_path):
    empty = Evaluation({}, {"distinct_2": math.nan})
    assert math.isnan(Evaluation.from_json(empty.to_json()).numbers["distinct_2"])


def test_the_same_measures_twice(models, rows, measured):
    settings = recipe.Evaluate(completions=400, batch_size=1, sampling=recipe.Sampling(max_tokens=2))
    again = Evaluator(rows, settings, Accelerator(cpu=True), models[1], Shout())(models[0])
    assert [s["completion"] for s in again.samples] == [s["completion"] for s in measured.samples]


def test_samples_without_a_verdict_are_counted(measured):
    scores = [sample["gold"] for sample in measured.samples]
    assert 0 < measured.numbers["gold_missing"] == sum(map(math.isnan, scores)) / len(scores)


def test_gold_may_ask_what_has_ended(models, rows):
    settings = recipe.Evaluate(completions=50, sampling=recipe.Sampling(max_tokens=2))
    gold = Transformed(Shout(), (MissingEOS(score=-7.0),))
    samples = Evaluator(rows, settings, Accelerator(cpu=True), models[1], gold)(models[0]).samples
    for sample in samples:
        assert math.isnan(sample["gold"]) or (sample["gold"] == -7) == (not sample["ended"])
    assert {sample["ended"] for sample in samples} == {0, 1}


@pytest.fixture
def scorer(tiny, tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(**tiny | {"num_labels": 1, "pad_token_id": 0})
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    torch.nn.init.normal_(model.score.weight)
    return Scorer(model, tokenizer)


JUDGED = [
    ("the film was", "great", "very dull", (5, 1), (7, 2)),
    ("a room is", "warm and quick", "cold", (3, 2.5), (3, 2)),
    ("the food", "good .", "bad .", (2, 0), (2, 1)),
    ("a view", "bright", "grim and slow", (1, 0), (4, 1)),
]


def scored(scorer, tokenizer, *columns):
    """What is measured of a scorer, and its rewards by the model alone."""
    examples = []
    for prompt, chosen, rejected, scores, votes in JUDGED:
        row = {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}
        row |= {"score_chosen": scores[0], "score_rejected": scores[1]} if "scores" in columns else {}
        examples.append(formats.parse(row | ({"votes": votes} if "votes" in columns else {})))
    tokenised, _ = tokenise(examples, tokenizer)
    scorer.model.config.pad_token_id = None  # so that the model itself reads the last token
    with torch.no_grad():
        rewards = [
            [
                scorer.model(input_ids=torch.tensor([[*row.prompt_ids, *ids]])).logits[0, 0].item()
                for ids in row.completion_ids
            ]
            for row in tokenised
        ]
    evaluation = Evaluator(tokenised, recipe.Evaluate(batch_size=3), Accelerator(cpu=True))(scorer)
    return evaluation, [chosen - rejected for chosen, rejected in rewards]


def win(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("columns", [(), ("votes",), ("scores",), ("scores", "votes")])
def test_calibration_of_a_scorer_by_hand(columns, scorer, tokenizer):
    evaluation, margins = scored(scorer, tokenizer, *columns)
    labels = [won / (won + lost) if "votes" in columns else 1.0 for *_, (won, lost) in JUDGED]
    pairs = list(zip(margins, labels, strict=True))
    assert min(map(abs, margins)) > 1e-3 and min(margins) < 0 < max(margins)
    by_hand = {
        "pair_nll": [-p * math.log(win(d)) - (1 - p) * math.log(win(-d)) for d, p in pairs],
        "brier": [(win(d) - p) ** 2 for d, p in pairs],
        "rewards_margin": margins,
    }
    for name, values in by_hand.items():
        assert evaluation.observations[name].values.tolist() == pytest.approx(values, abs=1e-9), name
        assert evaluation.estimates()[name].prompts == 4
    bins = {}
    for d, p in pairs:
        confidence = win(abs(d))
        sums = bins.setdefault(int((confidence - 0.5) * 20), [0.0, 0.0])
        sums[0] += confidence
        sums[1] += p if d > 0 else 1 - p
    assert evaluation.numbers["ece"] == pytest.approx(sum(abs(a - b) for a, b in bins.values()) / 4, abs=1e-9)


def test_rounding_puts_nobody_ahead():
    ahead = _ahead(torch.tensor([[5.0, 5.00001], [5.00001, 5.0], [5.0, 5.001], [5.001, 5.0]]))
    assert ahead.tolist() == [0.5, 0.5, 0.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_not_finite_are_said_and_not_measured(scorer, tokenizer, value):
    with torch.no_grad():
        scorer.model.score.weight.fill_(value)
    with pytest.raises(PrefoptError, match=r"rewards are not finite in \d+ of \d+ pairs.*its training diverged"):
        scored(scorer, tokenizer)


def test_accuracy_by_gap_of_a_scorer(scorer, tokenizer):
    """Gaps 4, .5, 2, 1: the terciles are 1 and 2."""
    evaluation, margins = scored(scorer, tokenizer, "scores")
    right = [float(d > 0) for d in margins]
    kinds = {"small": [right[1], right[3]], "medium": [right[2]], "large": [right[0]]}
    for name, values in kinds.items():
        assert evaluation.observations[f"accuracy_{name}_gap"].values.tolist() == values, name
    assert (evaluation.numbers["gap_small_to"], evaluation.numbers["gap_medium_to"]) == pytest.approx((1, 2))
    bare, _ = scored(scorer, tokenizer)
    assert not any("gap" in name for name in [*bare.observations, *bare.numbers])


def test_change_is_paired():
    before = Evaluation({"gold": Observations(np.array([0.0, 1.0, 5.0]), np.ones(3), ["a", "b", "c"])})
    after = Evaluation({"gold": Observations(np.array([1.0, 2.0, 6.3]), np.ones(3), ["a", "b", "c"])})
    change = after.change_since(before)["gold"]
    assert (change.value, change.low, change.high) == pytest.approx((1.1, 1, 1.3))
