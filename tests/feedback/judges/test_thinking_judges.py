"""Local judges whose templates think, or have no system turn."""

import pytest
from transformers import AutoTokenizer

from prefopt import PrefoptError
from prefopt.feedback.judges import Judge, Question
from prefopt.feedback.judges.prompts import rendered
from prefopt.feedback.judges.reading import Turns

THINKS = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant "
    "{% if enable_thinking is defined and not enable_thinking %}<think> </think> {% else %}<think> {% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<answer>"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}> {{ m['content'] }} {% endif %}{% endfor %}<answer>"
)  # fmt: skip
RUBRIC = {"system": "view", "question": "{{ completion }}", "answer": "is", "labels": [" good", " bad"]}


@pytest.fixture
def folder(lm_folder, tmp_path):
    def make(template):
        import shutil

        shutil.copytree(lm_folder, tmp_path / "lm")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "lm")
        return str(tmp_path / "lm")

    return make


def test_labels_are_not_read_within_thinking_and_it_can_be_switched_off(folder):
    model = folder(THINKS)
    for rubric in (RUBRIC, {k: v for k, v in RUBRIC.items() if k != "answer"}):
        with pytest.raises(
            PrefoptError, match=r"begins the answer with thinking.*chat_template_kwargs: \{enable_thinking"
        ):
            Judge(rubric, "pointwise", model=model).check()
    off = Judge(RUBRIC, "pointwise", model=model, chat_template_kwargs={"enable_thinking": False})
    off.check()
    question = Question((("user", "film"),), " is", labels=(" good",))
    assert off.asked.reading.text(question) == "user film assistant <think> </think>  is"
    assert off(["view"], [["a film"]], [{}]).scores.isfinite().all()
    assert off.identity["answers"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in Judge(RUBRIC, "pointwise", model=model).identity["answers"]


def test_a_text_that_the_template_begins_with_thinking_needs_its_end(folder):
    rubric = {"question": "{{ completion }}"}
    judge = Judge(rubric, "generative", model=folder(THINKS), verdict_tokens=4)
    judge.check()
    verdict = judge(["view"], [["a film"]], [{}])
    assert verdict.scores.isnan().all() and verdict.notes[0]["thinking"] == 1


def test_kwargs_of_a_template_are_for_a_local_model():
    with pytest.raises(ValueError, match=r"server: \{chat_template_kwargs"):
        Judge(RUBRIC, "pointwise", server={"model": "m"}, chat_template_kwargs={"x": 1})


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM], ids=["refuses", "leaves out"])
def test_without_a_system_turn_its_text_goes_before_the_first_users(folder, template):
    judge = Judge(RUBRIC, "pointwise", model=folder(template))
    judge.check()
    question = Question((("system", "very warm"), ("user", "film")))
    assert judge.asked.reading.text(question) == "<user> very warm\n\nfilm <answer>"


def test_a_template_that_takes_no_such_turns_is_refused_while_planning(folder):
    template = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0]['content'] }}"
    )
    rubric = RUBRIC | {"examples": [{"completion": "a film", "verdict": "good"}]}
    judge = Judge(rubric, "pointwise", model=folder(template))
    with pytest.raises(
        PrefoptError, match=r"refuses turns of system, user, assistant, user: one turn only.*template: false"
    ):
        judge.check()
    assert "reading" not in vars(judge.asked), "no model was loaded"


def test_a_turn_that_a_template_leaves_out_is_refused(chat_tokenizer):
    copy = type(chat_tokenizer)(tokenizer_object=chat_tokenizer.backend_tokenizer)
    copy.chat_template = "{{ messages[-1]['content'] }}"
    turns = [{"role": r, "content": c} for r, c in (("user", "one"), ("assistant", "two"), ("user", "three"))]
    with pytest.raises(PrefoptError, match="it leaves out the turn of user"):
        rendered(turns, copy, {}, "it")


def test_the_channels_of_gpt_oss_are_no_place_for_labels(chat_tokenizer):
    copy = type(chat_tokenizer)(tokenizer_object=chat_tokenizer.backend_tokenizer)
    copy.chat_template = "{{ messages[-1]['content'] }}<|start|>assistant"
    with pytest.raises(PrefoptError, match="begins the answer with thinking"):
        Turns(copy).text(Question((("user", "x"),), labels=("1",)))
    assert Turns(copy).text(Question((("user", "x"),))) == "x<|start|>assistant"
