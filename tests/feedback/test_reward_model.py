"""Real, tiny scorers: their scores are the model's own of the whole text, whatever stands beside it."""

import json
import math
import os
import subprocess
import sys
import tempfile

import pytest
import torch
from _tiny import tiny_model, tiny_pairs, tiny_recipe
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefopt import PrefoptError, load_recipe, run
from prefopt.data import collate, parse, tokenise
from prefopt.feedback import RewardModel
from prefopt.policy.parallel import forward
from prefopt.types import Needs

PROMPTS = ["the film was", "a room is"]
TEXTS = [[" very good", "", " bad ."], [" warm and quick", " cold but very bright and great .", "   "]]
ROWS = [{}, {}]


def by_hand(folder, text, **settings):
    """The score of a text or a conversation by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    as_ids = tokenizer if isinstance(text, str) else tokenizer.apply_chat_template
    row = as_ids(text, return_tensors="pt", return_dict=True, **settings)
    with torch.no_grad():
        return model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits[0, 0].item()


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("kind", ["scorer_folder", "bert_folder"])
def test_scores_are_the_models_own(kind, prompt, batch_size, request):
    folder = request.getfixturevalue(kind)
    model = RewardModel(str(folder), prompt=prompt, batch_size=batch_size, dtype="float64")
    verdict = model(PROMPTS, TEXTS, ROWS)
    for b, k in ((0, 0), (0, 2), (1, 0), (1, 1)):
        expected = by_hand(folder, PROMPTS[b] + TEXTS[b][k] + "</s>" if prompt else TEXTS[b][k])
        assert verdict.scores[b, k].item() == pytest.approx(expected, abs=1e-9)
    assert verdict.scores[~verdict.scores.isnan()].std() > 0.05
    assert not model.scorer.training


def test_what_it_reads_stays_in_memory(scorer_folder, monkeypatch):
    model = RewardModel(str(scorer_folder))
    model.load()

    def refuse(*given, **settings):
        raise AssertionError("a file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert model(PROMPTS, [[" good"], [" bad"]], ROWS).scores.isfinite().all()


def test_the_empty_have_no_verdict_and_are_counted(scorer_folder):
    verdict = RewardModel(str(scorer_folder))(PROMPTS, TEXTS, ROWS)
    assert verdict.scores.isnan().tolist() == [[False, True, False], [False, False, True]]
    assert verdict.notes == [{"empty": 1}, {"empty": 1}]
    nothing = RewardModel(str(scorer_folder))(["the"], [["", ""]], [{}])
    assert nothing.scores.isnan().all() and nothing.notes == [{"empty": 2}]
    ragged = RewardModel(str(scorer_folder))(PROMPTS, [[" good"], [" bad", " cold"]], ROWS)
    assert ragged.scores.isnan().tolist() == [[False, True], [False, False]] and ragged.notes == [{}, {}]


def test_conversations_by_the_template_of_the_reward_model(tmp_path, scorer_folder):
    tokenizer = AutoTokenizer.from_pretrained(scorer_folder)
    AutoModelForSequenceClassification.from_pretrained(scorer_folder).save_pretrained(tmp_path)
    talk = [{"role": "user", "content": "the film was"}]
    with pytest.raises(PrefoptError, match=r"prompt 1 of the feedback .* no chat template"):
        RewardModel(str(scorer_folder))([talk], [["good"]], [{}])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + ' , ' }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    verdict = RewardModel(str(tmp_path), dtype="float64")([talk], [["good", ""]], [{}])
    assert verdict.scores[0, 0].item() == pytest.approx(by_hand(tmp_path, "the film was , good ,"), abs=1e-9)
    assert verdict.scores[0, 1].isnan()
    # A completion of several turns, one of them a user's.
    answers = [{"role": "assistant", "content": "good"}, {"role": "user", "content": "and"}]
    several = [*answers, {"role": "assistant", "content": "bright"}]
    for prompt in (talk, "the film was"):
        verdict = RewardModel(str(tmp_path), dtype="float64")([prompt], [[several]], [{}])
        expected = by_hand(tmp_path, "the film was , good , and , bright ,")
        assert verdict.scores.item() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(PrefoptError, match="`prompt: false` is for single texts"):
        RewardModel(str(tmp_path), prompt=False)([talk], [[several]], [{}])


def test_a_finished_run_scores_as_it_was_trained(tmp_path):
    """The run folder of a reward model, LoRA included, gives held-out rows the scores that its evaluation gave them."""
    model, data = tiny_model(tmp_path / "lm"), tiny_pairs(tmp_path / "pairs.jsonl")
    for name, adapter in (("full", "null"), ("lora", "{r: 2, alpha: 4}")):
        file = tiny_recipe(
            tmp_path, model, data, "BradleyTerry", train="{steps: 4, batch_size: 8, lr: 1e-2, threads: 1}"
        )
        result = run(
            load_recipe(file, [f"policy.adapter={adapter}", "source.split=[0.5, 0, 0.5]"]), folder=tmp_path / name
        )
        kept = json.loads((result.folder / "evaluations" / "test-step-000004.json").read_text())["observations"]
        feedback = RewardModel(str(result.folder))
        rows = {row["prompt"]: row for row in map(json.loads, data.read_text().splitlines())}
        prompts = kept["rewards_chosen"]["groups"]
        texts = [[rows[prompt]["chosen"], rows[prompt]["rejected"]] for prompt in prompts]
        scores = feedback(prompts, texts, [{}] * len(prompts)).scores
        assert len(prompts) > 10
        assert scores[:, 0].tolist() == pytest.approx(kept["rewards_chosen"]["values"], abs=1e-5)
        assert scores[:, 1].tolist() == pytest.approx(kept["rewards_rejected"]["values"], abs=1e-5)


def test_long_texts_are_cut_as_in_training(scorer_folder):
    rows, _ = tokenise(
        [parse({"prompt": "the film was very", "completion": " good and bright"})],
        AutoTokenizer.from_pretrained(scorer_folder),
        max_prompt=2,
        max_completion=2,
    )
    model = RewardModel(str(scorer_folder), max_prompt_tokens=2, max_completion_tokens=2)
    expected = forward(model.scorer, collate(rows), Needs(rewards=True), 1, Accelerator(cpu=True)).rewards
    found = model(["the film was very"], [[" good and bright"]], [{}]).scores
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert found.item() != pytest.approx(RewardModel(str(scorer_folder))(["was very"], [[" good"]], [{}]).scores.item())


def test_averaged_weights(make_scorer_folder, tmp_path):
    """The model whose weights are the mean, made by hand; one of the three is an adapter."""
    folders = [make_scorer_folder(seed) for seed in (0, 1)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        base = AutoModelForSequenceClassification.from_pretrained(folders[0])
        adapted = get_peft_model(
            base, LoraConfig(r=2, task_type="SEQ_CLS", target_modules="all-linear", init_lora_weights=False)
        )
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folders[0]).save_pretrained(tmp_path / "adapter")
    averaged = RewardModel(str(folders[0]), average=(str(folders[1]), str(tmp_path / "adapter")), dtype="float64")
    models = [AutoModelForSequenceClassification.from_pretrained(f).double() for f in folders]
    states = [m.state_dict() for m in [*models, adapted.merge_and_unload().double()]]
    with torch.no_grad():
        for name, value in models[0].state_dict().items():
            value.copy_(sum(state[name] for state in states) / 3)
    expected = tmp_path / "mean"
    models[0].save_pretrained(expected)
    AutoTokenizer.from_pretrained(folders[0]).save_pretrained(expected)
    found, by_hand = (m(PROMPTS, TEXTS, ROWS).scores for m in (averaged, RewardModel(str(expected), dtype="float64")))
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-6, equal_nan=True)
    alone = RewardModel(str(folders[0]), dtype="float64")(PROMPTS, TEXTS, ROWS).scores
    assert (found - alone).nan_to_num(9).abs().min() > 1e-3


def test_weights_that_cannot_be_averaged(make_scorer_folder, bert_folder, scorer_folder, tmp_path):
    wider = make_scorer_folder(intermediate_size=32)
    with pytest.raises(PrefoptError, match=r"cannot be averaged: .*mlp.* has the shape \[24, 16\] .* \[32, 16\]"):
        RewardModel(str(scorer_folder), average=str(wider)).load()
    with pytest.raises(PrefoptError, match=r"cannot be averaged: .* has the shape"):
        RewardModel(str(scorer_folder), average=str(bert_folder)).load()
    other = tmp_path / "other"
    AutoModelForSequenceClassification.from_pretrained(scorer_folder).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(scorer_folder)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(other)
    with pytest.raises(PrefoptError, match="their tokenizers have different vocabularies"):
        RewardModel(str(scorer_folder), average=str(other)).load()


def test_what_is_no_reward_model(lm_folder, make_scorer_folder, tmp_path):
    with pytest.raises(PrefoptError, match="is no reward model: its architecture is LlamaForCausalLM"):
        RewardModel(str(lm_folder)).check()
    with pytest.raises(PrefoptError, match="a classifier with 3 outputs"):
        RewardModel(str(make_scorer_folder(num_labels=3))).check()
    with pytest.raises(PrefoptError, match="no model at /nowhere"):
        RewardModel("/nowhere").check()
    LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=str(lm_folder)).save_pretrained(tmp_path)
    with pytest.raises(PrefoptError, match=r"neither its adapter nor its base model has weights for score\.weight"):
        RewardModel(str(tmp_path)).check()


SHARED = """
import sys, torch
from accelerate import Accelerator
from prefopt.feedback import RewardModel
model = RewardModel(sys.argv[1], batch_size=2, dtype="float64", accelerator=Accelerator(cpu=True))
texts = [[" very good", "", " bad ."], [" warm", " cold but bright", " dull"]]
scores = model(["the film was", "a room is"], texts, [{}, {}]).scores
if model.accelerator.is_main_process: torch.save((scores, model.accelerator.num_processes), sys.argv[2])
if model.accelerator.num_processes > 1: torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_both_have_the_whole_verdict(scorer_folder, tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    found = []
    for processes in ("1", "2"):
        file = tmp_path / f"{processes}.pt"
        done = subprocess.run(
            [*launch, processes, str(tmp_path / "shared.py"), str(scorer_folder), str(file)],
            env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(file))
    assert (found[0][1], found[1][1]) == (1, 2)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12, equal_nan=True)
    assert math.isnan(found[1][0][0, 1])


def test_words_that_its_tokenizer_does_not_know_are_counted_by_prompt(scorer_folder):
    texts = [[" very good", " très bien"], [" bad", " <unk> unheard words"]]
    verdict = RewardModel(str(scorer_folder))(PROMPTS, texts, ROWS)
    assert verdict.notes == [{"unknown": 1}, {"unknown": 1}] and verdict.scores.isfinite().all()
