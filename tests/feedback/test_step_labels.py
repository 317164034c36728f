"""Token classifiers with two labels, as TRL's former PRMTrainer saves them, as reward models of steps."""

import math

import pytest
import torch
from _chatml import chatml_llama, chatml_tokenizer
from peft import LoraConfig
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
    LlamaForTokenClassification,
)

from prefopt import PrefoptError
from prefopt.feedback import Ensemble, RewardModel
from prefopt.policy import find_scorer

PROMPT, TEXTS = "2 + 2?", ["add 2\nso 4\n", "it is 4", "one\n\ntwo\nthree"]
STEPS = [["add 2\n", "so 4\n"], ["it is 4\n"], ["one\n\n", "two\n", "three\n"]]

SMALL = {"vocab_size": 98, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def llama(**more):
    return chatml_llama(chatml_tokenizer(), LlamaForTokenClassification, **{"num_labels": 2} | more)


def gpt2():
    tokenizer = chatml_tokenizer()
    return GPT2ForTokenClassification(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=2)
    )


def saved(model, folder, std=0.3):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    chatml_tokenizer().save_pretrained(folder)
    return str(folder)


def right(folder, prompt, steps):
    """transformers' own probability of the label 1 at the end of each step."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    ids = chatml_tokenizer()(prompt + "".join(steps), return_tensors="pt")["input_ids"]
    ends = [len(prompt + "".join(steps[: n + 1])) - 1 for n in range(len(steps))]  # a character is a token
    with torch.no_grad():
        return model(input_ids=ids).logits[0].softmax(-1)[ends, 1].tolist()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_text_is_right_where_all_of_its_steps_are(tmp_path, make):
    folder = saved(make(), tmp_path)
    verdict = RewardModel(folder)([PROMPT], [TEXTS], [{}])
    expected = [math.prod(right(folder, PROMPT, steps)) for steps in STEPS]
    assert [numbers for (numbers,) in verdict.steps[0]] == pytest.approx(expected, abs=1e-5)
    assert verdict.scores.tolist() == [[0, 0, 0]] and max(expected) - min(expected) > 0.01


def test_weights_are_averaged_as_those_of_other_reward_models(tmp_path):
    folders = [saved(llama(), tmp_path / name, std) for name, std in (("a", 0.3), ("b", 0.2))]
    one, two = (RewardModel(folder)([PROMPT], [TEXTS], [{}]).steps[0] for folder in folders)
    mean = RewardModel(folders[0], average=folders[1])([PROMPT], [TEXTS], [{}]).steps[0]
    assert mean != one != two
    both = Ensemble([RewardModel(folder) for folder in folders])([PROMPT], [TEXTS], [{}]).steps[0]
    assert [n for (n,) in both] == pytest.approx([(a + b) / 2 for (a,), (b,) in zip(one, two, strict=True)], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: llama(num_labels=3), "a token classifier with 3 labels; a process reward model has two"),
        (
            lambda: BertForTokenClassification(BertConfig(**SMALL, num_labels=2)),
            "is a token classifier and no decoder, so that its label of a step has seen the steps that follow",
        ),
        (
            lambda: LoraConfig(task_type="TOKEN_CLS", base_model_name_or_path="base"),
            r"an adapter of a token classifier: merge it first \(peft's `merge_and_unload`\)",
        ),
    ],
)
def test_what_labels_no_steps_is_refused_before_it_is_loaded(tmp_path, model, message):
    model().save_pretrained(tmp_path / "labels")
    with pytest.raises(PrefoptError, match=message):
        find_scorer([str(tmp_path / "labels")])


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ([{"role": "user", "content": PROMPT}], "4"),
        (PROMPT, ({"role": "assistant", "content": "4"}, {"role": "user", "content": "ok"})),
    ],
)
def test_a_conversation_is_refused(tmp_path, prompt, completion):
    with pytest.raises(PrefoptError, match=r"labels steps of texts, .* a conversation: give prompts as texts"):
        RewardModel(saved(llama(), tmp_path))([prompt], [[completion]], [{}])


def said(*texts):
    return {"messages": [[{"role": "assistant", "content": text} for text in texts]]}


def test_steps_that_are_turns_have_a_number_each(tmp_path):
    folder = saved(llama(), tmp_path)
    verdict = RewardModel(folder)([PROMPT], [["add 2\nso 4"]], [said("add 2\n", "so 4")])
    assert verdict.steps[0][0] == pytest.approx(right(folder, PROMPT, ["add 2\n", "so 4\n"]), abs=1e-5)
    with pytest.raises(PrefoptError, match=r"a turn of this episode ends otherwise: .*`stop = \('\\n',\)`"):
        RewardModel(folder)([PROMPT], [["add 2;so 4"]], [said("add 2;", "so 4")])
