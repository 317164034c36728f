"""Reward models of steps and segments as feedback: a number for each turn, as the model itself gives it."""

import math

import pytest
import torch
from _chatml import chatml_llama, chatml_tokenizer
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification

from prefopt import PrefoptError, Verdict
from prefopt.feedback import Ensemble, RewardModel, ask
from prefopt.policy import Reading, Scorer

ASKED = [{"role": "user", "content": "2 + 2?"}]
EPISODE = (
    {"role": "assistant", "content": "add(2, 2)"},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4."},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same random model, saved as each kind of scorer."""
    home = tmp_path_factory.mktemp("steps")
    tokenizer = chatml_tokenizer()
    model = chatml_llama(tokenizer, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    readings = {
        "segments": Reading(64, 64, steps="reward"),
        "labels": Reading(64, 64, steps="logit"),
        "lines": Reading(64, 64, steps="logit", separator="\n"),
        "short": Reading(64, 30, steps="reward"),
    }
    for name, reading in readings.items():
        Scorer(model, tokenizer, reading).save(home / name)
    return home


def own(folders, text):
    """The model's own number of a text, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folders / "segments").eval()
    ids = chatml_tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits[0, 0].item()


def begun(turns):
    """The conversation up to the end of an answer, its control token included: where a turn is scored."""
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return text.removesuffix("\n")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("kind", "of"), [("segments", float), ("labels", sigmoid)])
def test_an_episode_has_a_number_for_each_turn_of_the_policy(folders, kind, of):
    verdict = RewardModel(str(folders / kind))([ASKED], [[EPISODE, EPISODE[2:]]], [{}])
    expected = [[begun([*ASKED, *EPISODE[:1]]), begun([*ASKED, *EPISODE])], [begun([*ASKED, *EPISODE[2:]])]]
    for numbers, texts in zip(verdict.steps[0], expected, strict=True):
        assert numbers == pytest.approx([of(own(folders, text)) for text in texts], abs=1e-4)
    assert verdict.scores.tolist() == [[0, 0]]  # steps come on top of it
    assert abs(verdict.steps[0][0][0] - verdict.steps[0][0][1]) > 1e-3


def test_a_text_is_cut_into_steps_as_in_training_and_is_right_where_all_are(folders):
    prompt, text = "2 + 2?", "add 2\nso 4"
    verdict = RewardModel(str(folders / "lines"))([prompt], [[text]], [{}])
    steps = [own(folders, prompt + part) for part in ("add 2\n", "add 2\nso 4\n")]
    assert verdict.steps[0][0] == pytest.approx([sigmoid(steps[0]) * sigmoid(steps[1])], abs=1e-5)


def test_a_text_of_a_model_of_turns_is_one_step(folders):
    verdict = RewardModel(str(folders / "segments"))(["2 + 2?"], [["add 2\nso 4"]], [{}])
    # The end token is the step's last one.
    assert verdict.steps[0][0] == pytest.approx([own(folders, "2 + 2?add 2\nso 4<|im_end|>")], abs=1e-4)


def test_what_an_environment_says_at_the_end_is_not_read(folders):
    model = RewardModel(str(folders / "segments"))
    ended = model([ASKED], [[(*EPISODE, {"role": "tool", "content": "done"}), EPISODE]], [{}])
    assert ended.steps[0][0] == pytest.approx(ended.steps[0][1], abs=1e-5)


SAID = (
    {"role": "assistant", "content": "up"},
    {"role": "environment", "content": " wall;"},
    {"role": "assistant", "content": ""},
    {"role": "environment", "content": " late;"},
    {"role": "assistant", "content": "left"},
    {"role": "environment", "content": " goal"},
)
"""An episode that goes on as text; in its second turn the policy wrote nothing."""


@pytest.mark.parametrize(("kind", "of"), [("segments", float), ("labels", sigmoid), ("lines", sigmoid)])
def test_a_turn_of_an_episode_that_is_text_is_a_step(folders, kind, of):
    text = "".join(turn["content"] for turn in SAID)
    verdict = RewardModel(str(folders / kind))(["go: "], [[text, "up"]], [{"messages": [SAID, SAID[:1]]}])
    read = ["go: up", "go: up wall;", "go: up wall; late;left"]
    assert verdict.steps[0][0] == pytest.approx([of(own(folders, part)) for part in read], abs=1e-4)
    assert verdict.steps[0][1] == pytest.approx([of(own(folders, "go: up"))], abs=1e-4)


def test_turns_of_which_nothing_is_read_have_0_and_an_empty_completion_no_verdict(folders):
    verdict = RewardModel(str(folders / "short"))([ASKED], [[EPISODE, ""]], [{}])
    first, second = verdict.steps[0][0]
    assert first != 0 and second == 0
    assert verdict.notes[0]["cut"] == 1
    assert math.isnan(verdict.scores[0, 1]) and verdict.steps[0][1] == [0.0]


def test_what_wants_one_number_gets_the_sum(folders):
    model, asked = RewardModel(str(folders / "segments")), ([ASKED], [[EPISODE, ""]], [{}])
    apart = ask(model, "feedback", *asked, Accelerator(cpu=True))
    whole = apart.whole()
    assert whole.steps is None
    assert whole.scores[0, 0].item() == pytest.approx(sum(apart.steps[0][0]), rel=1e-6)
    assert math.isnan(whole.scores[0, 1])
    plain = Verdict(torch.tensor([[1.0]]))
    assert plain.whole().scores.tolist() == [[1.0]]


def test_an_ensemble_of_step_models_combines_their_steps(folders):
    members = [RewardModel(str(folders / name)) for name in ("segments", "labels")]
    verdicts = [member([ASKED], [[EPISODE]], [{}]) for member in members]
    both = Ensemble(tuple(members))([ASKED], [[EPISODE]], [{}])
    expected = [(a + b) / 2 for a, b in zip(verdicts[0].steps[0][0], verdicts[1].steps[0][0], strict=True)]
    assert both.steps[0][0] == pytest.approx(expected, rel=1e-6)


def test_a_template_that_splits_turns_is_refused(folders, tmp_path):
    """Gemma 4 writes a tool's result between the call and the text of the turn that calls it."""
    split = (
        "{% for m in messages %}{% if m['role'] != 'tool' %}<|im_start|>{{ m['role'] }}\n"
        "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }}<|im_start|>"
        "{% set n = messages.index(m) + 1 %}{% if messages[n] is defined %}[{{ messages[n]['content'] }}]<|im_start|>{% endif %}"
        "{% endfor %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = chatml_tokenizer(template=split)
    tokenizer.save_pretrained(tmp_path)
    calls = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    caller = {"role": "assistant", "content": "we will see", "tool_calls": calls}
    model = RewardModel(str(folders / "segments"), tokenizer=str(tmp_path))
    with pytest.raises(PrefoptError, match="2 turns of the assistant as 3 parts"):
        model([ASKED], [[(caller, *EPISODE[1:])]], [{}])
