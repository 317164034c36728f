"""Recorded episodes with tools: through whole runs, and what each token of them is."""

import io
import json
import math

import pytest
import torch
from _tiny import tiny_recipe
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt import PrefoptError, load_recipe, run
from prefopt.data import collate, parse, tokenise
from prefopt.policy import load_tokenizer
from prefopt.recipe import Policy

QUIET = Console(quiet=True)
SPECIALS = ["<pad>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for t in tools or [] %}{{ t['function']['name'] }};{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
ASKED = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "2 + 2?"}]


def call(arguments, text=None, *more):
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "add", "arguments": a}}
        for n, a in enumerate((arguments, *more))
    ]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def result(text):
    return {"role": "tool", "tool_call_id": "c0", "name": "add", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


ONE = [call({"a": 2, "b": 2}), result("4"), says("It is 4.")]
"""A call, its result, and an answer."""
TWO = [
    call({"a": 1}, "Try", {"a": 2}),
    result("no"),
    result("no b"),
    says("Wait."),
    {"role": "user", "content": "?"},
    says("5"),
]
"""Two calls at once, two results, and another turn of the user's."""
NONE = [says("It is 5.")]

PIECES = {
    "one": (
        ONE,
        [
            ('<call>{"name": "add", "arguments": {"a": 2, "b": 2}}</call><|im_end|>', True),
            ("\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n", False),
            ("It is 4.<|im_end|>", True),
        ],
    ),
    "two": (
        TWO,
        [
            (
                'Try<call>{"name": "add", "arguments": {"a": 1}}</call>'
                '<call>{"name": "add", "arguments": {"a": 2}}</call><|im_end|>',
                True,
            ),
            ("\n<|im_start|>tool\nno<|im_end|>\n<|im_start|>tool\nno b<|im_end|>\n<|im_start|>assistant\n", False),
            ("Wait.<|im_end|>", True),
            ("\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n", False),
            ("5<|im_end|>", True),
        ],
    ),
    "none": (NONE, [("It is 5.<|im_end|>", True)]),
}
"""Each episode, and its text in pieces: what the policy wrote, and what it did not."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that reads single characters, under a template that writes calls."""
    home = tmp_path_factory.mktemp("episodes")
    vocabulary = [*SPECIALS, *map(chr, range(32, 127)), "\n"]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|im_start\|>|<\|im_end\|>|<pad>|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(home / "lm")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **size, **ends)).save_pretrained(home / "lm")
    return home


@pytest.fixture(scope="module")
def tokenizer(home):
    return load_tokenizer(Policy(model=(str(home / "lm"),)))


def tokens_of(pieces, tokenizer):
    """Ids and mask of an episode, piece by piece."""
    parts = [(tokenizer(text, add_special_tokens=False)["input_ids"], own) for text, own in pieces]
    return [token for part, _ in parts for token in part], [own for part, own in parts for _ in part]


def written(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def asked(number):
    return [*ASKED[:1], {"role": "user", "content": f"{number} + 2?"}]


def of(name):
    return PIECES[name][0]


def better(number):
    return "two" if number % 2 else "one"


FORMS = {
    "paired": (
        lambda n: {"prompt": asked(n), "chosen": of(better(n)), "rejected": NONE},
        lambda n: [better(n), "none"],
    ),
    "whole conversations": (
        lambda n: {"chosen": asked(n) + ONE, "rejected": asked(n) + NONE},
        lambda n: ["one", "none"],
    ),
    "unpaired": (
        lambda n: {"prompt": asked(n), "completion": (ONE, TWO, NONE)[n % 3], "label": n % 3 < 2},
        lambda n: [("one", "two", "none")[n % 3]],
    ),
    "rated": (
        lambda n: {"prompt": asked(n), "completions": [NONE, ONE, TWO], "scores": [0, 1, 0.5]},
        lambda n: ["none", "one", "two"],
    ),
}
"""Rows of each form, by a number, and the names of their episodes."""


def row_of(form, number):
    return {**FORMS[form][0](number), "tools": [TOOL]}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(3))
def test_each_token_is_the_policys_or_the_environments(form, number, tokenizer):
    """Ids and mask of the whole episode, against the text put together by hand."""
    (made,), report = tokenise([parse(row_of(form, number))], tokenizer)
    head = "add;<|im_start|>system\nBe exact.<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(list(made.prompt_ids)) == f"{head}{number} + 2?<|im_end|>\n<|im_start|>assistant\n"
    batch, names = collate([made]), FORMS[form][1](number)
    assert len(names) == made.size
    for k, name in enumerate(names):
        ids, mask = tokens_of(PIECES[name][1], tokenizer)
        assert list(made.completion_ids[k]) == ids
        assert batch.mask[0, k, : len(ids)].tolist() == mask and not batch.mask[0, k, len(ids) :].any()
    assert not report.counts and not report.refusal


OBJECTIVES = {
    "DPO": ("paired", "DPO", ""),
    "DMPO": ("paired", "DMPO", ""),
    "RPO": ("paired", "RPO", ", embeddings: {}"),
    "KTO of labels": ("unpaired", "KTO", ", writers: [mismatched]"),
    "KTO of pairs": ("paired", "KTO", ", writers: [mismatched]"),
    "DPO of lists": ("rated", "DPO", ""),
    "InfoNCA": ("rated", "InfoNCA", ""),
    "BradleyTerry": ("paired", "BradleyTerry", ""),
    "SegmentBradleyTerry": ("paired", "SegmentBradleyTerry", ""),
    "SFT": ("unpaired", "SFT", ""),
}


QUICK = ("DPO", "RPO", "KTO of labels", "InfoNCA", "SegmentBradleyTerry")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in OBJECTIVES])
def test_whole_episodes_through_a_run(case, home, tmp_path):
    form, objective, more = OBJECTIVES[case]
    data = written(tmp_path, [row_of(form, n) for n in range(18)])
    limits = "max_prompt_tokens: 200, max_completion_tokens: 300"
    train = "{steps: 3, batch_size: 4, lr: 1e-2, threads: 1}"
    file = tiny_recipe(
        tmp_path,
        home / "lm",
        data,
        objective,
        train=train,
        evaluate="{prompts: 0}",
        source=f"{{data: {data}, split: [0.7, 0, 0.3], {limits}{more}}}",
    )
    run(load_recipe(file), folder=tmp_path / "run", console=QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 3 and all(line["grad_norm"] > 0 and math.isfinite(line["loss"]) for line in steps)
    if objective in ("DPO", "DMPO"):
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert steps[-1]["loss"] < math.log(2)


def test_the_head_of_a_run_shows_the_mask(home, tmp_path):
    """What is learnt stands between brackets."""
    data = written(tmp_path, [row_of("paired", n) for n in range(0, 16, 2)])
    said = io.StringIO()
    file = tiny_recipe(
        tmp_path,
        home / "lm",
        data,
        "DPO",
        evaluate="{prompts: 0}",
        train="{steps: 1, batch_size: 4, lr: 1e-3, threads: 1}",
        source=f"{{data: {data}, split: [1, 0, 0], max_completion_tokens: 300}}",
    )
    run(load_recipe(file), folder=tmp_path / "run", console=Console(file=said, width=400))
    shown = "".join(f"⟦{text}⟧" if own else text for text, own in PIECES["one"][1])
    assert shown in "\n".join(line.strip() for line in said.getvalue().splitlines())


def test_the_likelihood_that_a_run_measures_is_of_the_policys_tokens_alone(home, tokenizer, tmp_path):
    """`nll` before training, against transformers' own logits at the tokens that the policy wrote."""
    rows = [row_of("paired", n) for n in range(4)]
    data = written(tmp_path, rows)
    file = tiny_recipe(
        tmp_path,
        home / "lm",
        data,
        "DPO",
        train="{steps: 1, batch_size: 2, lr: 1e-3, threads: 1}",
        evaluate="{prompts: 0}",
        source=f"{{data: {data}, split: [1, 0, 0], test: {{data: {data}}}, max_completion_tokens: 300}}",
    )
    before = run(load_recipe(file), folder=tmp_path / "run", console=QUIET).before
    model = AutoModelForCausalLM.from_pretrained(home / "lm").eval()
    lost = []
    for number in range(4):
        start = tokenizer.apply_chat_template(asked(number), tools=[TOOL], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(start, add_special_tokens=False)["input_ids"]
        ids, mask = tokens_of(PIECES["two" if number % 2 else "one"][1], tokenizer)
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        lost.append(-logps[range(len(ids)), ids][torch.tensor(mask)])
    assert before["nll"].value == pytest.approx(torch.cat(lost).mean().item(), abs=1e-5)


@pytest.mark.parametrize("arguments", ['{"a": 2, "b": 2}', '{"a":2,"b":2}'])
def test_arguments_may_be_json_text_as_openai_has_them(arguments, tokenizer):
    text, plain = (
        tokenise([parse({"prompt": ASKED, "completion": [call(given), *ONE[1:]]})], tokenizer)[0][0]
        for given in (arguments, {"a": 2, "b": 2})
    )
    assert text.completion_ids == plain.completion_ids and text.masks == plain.masks


@pytest.mark.parametrize("arguments", ["{a: 2", "[1, 2]", ""])
def test_arguments_that_are_no_json_object_are_what_was_written(arguments, tokenizer):
    (made,), _ = tokenise([parse({"prompt": ASKED, "completion": [call(arguments), *ONE[1:]]})], tokenizer)
    learnt = tokenizer.decode([t for t, own in zip(made.completion_ids[0], made.masks[0], strict=True) if own])
    assert json.dumps(arguments) in learnt


def test_a_result_that_ends_an_episode_is_left_out(tokenizer):
    """Nothing follows it, so it changes no likelihood; a turn of the user's at the end may be a mistake."""
    ended, alone = (
        tokenise([parse({"prompt": ASKED, "completion": turns})], tokenizer)[0][0]
        for turns in ([*ONE, call({"a": 3}), result("5"), result("6")], [*ONE, call({"a": 3})])
    )
    assert ended.completion_ids == alone.completion_ids and ended.masks == alone.masks
    with pytest.raises(PrefoptError, match="ends with a turn of 'user'"):
        parse({"prompt": ASKED, "completion": [*ONE, {"role": "user", "content": "thanks"}]})
    with pytest.raises(PrefoptError, match="ends with a turn of 'tool'"):
        parse({"prompt": ASKED, "completion": [result("4")]})
