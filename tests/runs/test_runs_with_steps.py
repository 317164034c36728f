"""Reward models of steps and of segments in whole runs: trained on rows, saved, measured, and as feedback for RL."""

import json
import math
import random
from dataclasses import dataclass
from statistics import mean

import pytest
import torch
from _tiny import tiny_recipe
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt import PrefoptError, load_recipe, run
from prefopt.feedback import RewardModel
from prefopt.objectives import RLOO
from prefopt.policy import Reading, reading_of
from prefopt.runs.held_out_metrics import held_out_metrics
from prefopt.runs.inspecting import evaluate, trained
from prefopt.types import Turn

QUIET = Console(quiet=True)
LETTERS = "abcdefgh"


def letters_lm(folder):
    """A Llama of two layers that reads single characters, a line break among them."""
    vocabulary = ["<pad>", "<eos>", *map(chr, range(32, 127)), "\n"]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<pad>|<eos>|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **size, **ends)).save_pretrained(folder)
    return folder


def step(draw):
    return "".join(draw.choice(LETTERS) for _ in range(3))


def right(text):
    """A step is right where it begins in the first half of the letters."""
    return text[0] in "abcd"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model and rows: TRL's stepwise ones, and pairs of segments that are compared by their right steps."""
    home, draw = tmp_path_factory.mktemp("steps"), random.Random(0)
    letters_lm(home / "lm")
    stepwise, pairs = [], []
    for number in range(300):
        steps = [step(draw) for _ in range(draw.randint(1, 3))]
        stepwise.append({"prompt": f"{number}:", "completions": steps, "labels": [right(one) for one in steps]})
        sides = [[step(draw) for _ in range(3)] for _ in range(2)]
        worse, better = sorted(sides, key=lambda side: sum(map(right, side)))
        if sum(map(right, worse)) < sum(map(right, better)):
            pairs.append({"prompt": f"{number}:", "chosen": better, "rejected": worse})
    for name, rows in (("stepwise", stepwise), ("pairs", pairs)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def trained_on(home, data, objective, steps=60):
    folder = home / objective
    if not folder.exists():
        train = f"{{steps: {steps}, batch_size: 16, lr: 2e-2, threads: 1}}"
        test = f"{{data: {home / data}, split: [0.8, 0, 0.2]}}"
        file = tiny_recipe(home, home / "lm", home / data, objective, train=train, source=test, evaluate="{prompts: 0}")
        run(load_recipe(file), folder=folder, console=QUIET)
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def numbers_of(model):
    """What a reward model says of further texts of one step, and which are right."""
    draw = random.Random(1)
    steps = [step(draw) for _ in range(60)]
    verdict = RewardModel(str(model))(["7:"], [steps], [{}])
    return [number for (number,) in verdict.steps[0]], [right(one) for one in steps]


def test_labels_of_steps_are_learnt_from_trls_rows_and_saved_as_such(home):
    folder = trained_on(home, "stepwise.jsonl", "StepReward")
    lines = metrics(folder)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.15)
    assert lines[-1]["loss"] < 0.4 and lines[-1]["steps/accuracy"] > 0.85
    assert reading_of(str(folder / "policy")) == Reading(512, 512, steps="logit", separator="\n")
    summary = json.loads((folder / "summary.json").read_text())
    before, after = (summary[when] for when in ("before", "after"))
    assert before["step_nll"]["value"] == pytest.approx(math.log(2), abs=0.15)
    assert after["step_accuracy"]["value"] > 0.85 and after["step_nll"]["value"] < 0.4
    assert evaluate(trained(folder), QUIET).estimates()["step_nll"].value == pytest.approx(after["step_nll"]["value"])
    assert set(after) <= set(held_out_metrics(load_recipe(folder / "recipe.yaml"), True, None))
    numbers, labels = numbers_of(folder)
    assert mean([(number > 0.5) == label for number, label in zip(numbers, labels, strict=True)]) > 0.85


def test_segments_tell_which_of_their_steps_are_good(home):
    folder = trained_on(home, "pairs.jsonl", "SegmentBradleyTerry")
    assert reading_of(str(folder / "policy")) == Reading(512, 512, steps="reward", separator="\n")
    summary = json.loads((folder / "summary.json").read_text())
    again = evaluate(trained(folder), QUIET).estimates()
    assert again["accuracy"].value == pytest.approx(summary["after"]["accuracy"]["value"])
    assert summary["after"]["accuracy"]["value"] > 0.8
    numbers, labels = numbers_of(folder)
    good, bad = ([n for n, label in zip(numbers, labels, strict=True) if label == kind] for kind in (True, False))
    assert mean([a > b for a in good for b in bad]) > 0.85


@pytest.mark.parametrize("objective", ["StepReward", "SegmentBradleyTerry"])
def test_both_are_feedback_for_rl(home, tmp_path, objective):
    """The reward of a step-wise model is what the policy is paid, once: as the rewards of its turns, and not as a score as well."""
    model = trained_on(home, {"StepReward": "stepwise.jsonl"}.get(objective, "pairs.jsonl"), objective)
    more = {
        "source": f"{{data: {home / 'stepwise.jsonl'}, rollouts: {{completions: 2, sampling: {{max_tokens: 6}}}}}}",
        "train": "{steps: 2, batch_size: 4, lr: 1e-3, threads: 1}",
        "evaluate": "{prompts: 0}",
        "feedback": f"{{name: RewardModel, model: {model}}}",
    }
    file = tiny_recipe(tmp_path, home / "lm", home / "pairs.jsonl", "{name: RLOO, beta: 0}", **more)
    run(load_recipe(file), folder=tmp_path / "run", console=QUIET)
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)


SEEN: list = []


@dataclass(frozen=True)
class Seeing(RLOO):
    """RLOO, and what it was given."""

    def targets(self, batch, old, reference):
        SEEN.append(batch)
        return super().targets(batch, old, reference)


class Twice:
    """An environment of two turns, each of which ends at a small letter; it says what no policy wrote."""

    stop = tuple("abcdefghijklmnopqrstuvwxyz")

    def reset(self, row, seed):
        self.turns = 0

    def step(self, text, *, truncated):
        self.turns += 1
        return Turn(" No.\n", reward=100.0, done=self.turns == 2)


def test_each_turn_of_an_episode_is_paid_what_the_model_says_of_it(home, tmp_path):
    """By transformers' own number of the text up to the end of the turn, and not by the environment."""
    model = trained_on(home, "pairs.jsonl", "SegmentBradleyTerry")
    rollouts = (
        "{completions: 2, sampling: {max_tokens: 40}, environment: {name: 'the:class', max_turns: 2, max_tokens: 90}}"
    )
    more = {
        "source": f"{{data: {home / 'stepwise.jsonl'}, rollouts: {rollouts}}}",
        "train": "{steps: 1, batch_size: 4, lr: 1e-3, threads: 1}",
        "evaluate": "{prompts: 0}",
        "feedback": f"{{name: RewardModel, model: {model}}}",
    }
    file = tiny_recipe(tmp_path, home / "lm", home / "pairs.jsonl", "RLOO", **more)
    SEEN.clear()
    run(load_recipe(file), objective=Seeing(beta=0.0), environment=Twice, folder=tmp_path / "run", console=QUIET)
    scorer = AutoModelForSequenceClassification.from_pretrained(model / "policy").eval()
    batch, paid = SEEN[-1], 0  # the first ones are of the contract's checks
    for b, k, t in batch.step_ends.nonzero().tolist():
        own = batch.completion_ids[b, k, : t + 1].tolist()
        if min(own) < 2:  # an end token of the policy's is no part of the text that the model reads
            continue
        with torch.no_grad():
            expected = scorer(input_ids=torch.tensor([[*batch.prompt_ids[b], *own]])).logits[0, 0].item()
        assert batch.rewards[b, k, t].item() == pytest.approx(expected, abs=1e-4)
        paid += 1
    assert paid >= 8 and batch.step_ends.sum() > 8  # of eight episodes, some of two turns
    assert not batch.rewards[~batch.step_ends].any() and not batch.scores.any()


def test_gold_of_a_step_model_is_one_number(home, tmp_path):
    model = trained_on(home, "pairs.jsonl", "SegmentBradleyTerry")
    gold = f"{{prompts: 3, sampling: {{max_tokens: 6}}, gold: {{name: RewardModel, model: {model}}}}}"
    train = "{steps: 1, batch_size: 4, lr: 1e-3, threads: 1}"
    file = tiny_recipe(tmp_path, home / "lm", home / "pairs.jsonl", "DPO", evaluate=gold, train=train)
    run(load_recipe(file), folder=tmp_path / "run", console=QUIET)
    kept = json.loads((tmp_path / "run" / "evaluations" / "test-step-000001.json").read_text())
    asked = [(one["prompt"], one["completion"], one["gold"]) for one in kept["samples"] if one["gold"] is not None]
    verdict = RewardModel(str(model))([p for p, _, _ in asked], [[c] for _, c, _ in asked], [{}] * len(asked))
    assert [gold for _, _, gold in asked] == pytest.approx([row[0][0] for row in verdict.steps], abs=1e-4)
    assert any(abs(gold) > 1e-3 for _, _, gold in asked)


def test_rows_without_labels_of_steps_are_refused_with_what_to_give(home, tmp_path):
    file = tiny_recipe(tmp_path, home / "lm", home / "pairs.jsonl", "StepReward")
    with pytest.raises(PrefoptError, match=r"no column 'step_labels'.*TRL's stepwise rows have them"):
        run(load_recipe(file), folder=tmp_path / "run", console=QUIET)
