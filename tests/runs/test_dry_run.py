"""What a dry run says, against sums done by hand."""

import io
import json
import re
from itertools import islice

import pytest
import torch
from rich.console import Console

from prefopt import load_recipe
from prefopt.policy import find_model, load_policy, load_tokenizer
from prefopt.policy.parallel import shard
from prefopt.runs.activations import kept
from prefopt.runs.dry_run import describe_dry_run, dry_run
from prefopt.runs.folder import RunFolder
from prefopt.runs.memory import Part, estimate_memory, peak, size_of
from prefopt.runs.micro_batches import MicroBatch
from prefopt.runs.preparing import prepare
from prefopt.runs.run import run
from prefopt.support.errors import PrefoptError
from prefopt.support.wording import counted
from prefopt.training.devices import computing

PAIRS = '{"prompt": "the film", "chosen": "was good", "rejected": "was bad"}\n'


@pytest.fixture
def make_recipe(tmp_path, lm_folder):
    """A recipe on 40 pairs, with more lines and overrides."""
    (tmp_path / "pairs.jsonl").write_text(
        "".join(PAIRS.replace("film", f"film {'very ' * number}") for number in range(40))
    )

    def make(*overrides, objective="DPO"):
        (tmp_path / "recipe.yaml").write_text(
            f"policy: {{model: {lm_folder}}}\n"
            "source: {data: pairs.jsonl, split: [1, 0, 0], max_prompt_tokens: 10, max_completion_tokens: 6}\n"
            f"objective: {objective}\n"
            "train: {epochs: 2, batch_size: 8, micro_batch_size: 3, precision: fp32}\n"
        )
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return make


def parts(settings):
    return {part.what: part.size for part in dry_run(settings).memory}


# 2 × 30 × 16 of the embedding and the head; a layer's q, o 16 × 16, k, v 8 × 16, three of 16 × 24 and two norms; a norm.
WEIGHTS = 960 + 2 * (2 * 256 + 2 * 128 + 3 * 384 + 2 * 16) + 16
# 2 of 16 + 16, 2 of 16 + 8 and 3 of 16 + 24 in each of 2 layers.
ENDS = 2 * (2 * 32 + 2 * 24 + 3 * 40)


# 3 prompts of at most 10 tokens, each with two completions of 3 and EOS: the longest batch of three.
TOKENS, PREDICTED, LONGEST = 3 * (10 + 2 * 3), 3 * 2 * 3, 15


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


# Each completion of those three with its prompt.
ATTENDED = 3 * 2 * (10 + 3)


def test_memory_by_hand(make_recipe):
    found = parts(make_recipe())
    fixed = {
        "policy: weights": WEIGHTS * 4,
        "policy: gradients": WEIGHTS * 4,
        "policy: optimiser": WEIGHTS * 4 * 2,
        "reference": WEIGHTS * 4,
        "their gradients": TOKENS * 2 * 24 * 4,
        "copies for attention": 2
        * (2 * ATTENDED + TOKENS)
        * 16
        * 4,  # keys and values, and what comes out; in 2 layers
        "logits": PREDICTED * 30 * 2 * 4,
    }
    assert {what: found[what] for what in fixed} == fixed
    small = parts(make_recipe("policy.dtype=bfloat16", "train.optimizer=sgd"))
    assert small["policy: weights"] == small["reference"] == WEIGHTS * 2 and small["policy: optimiser"] == 0
    assert "reference" not in parts(make_recipe("objective=SFT", "evaluate.prompts=0"))
    assert parts(make_recipe("objective=SFT"))["reference"] == WEIGHTS * 4  # samples are measured against it


SAVED = {
    "as it is": [],
    "gradient checkpointing": ["policy.gradient_checkpointing=true"],
    "an adapter": ["policy.adapter={r: 4}"],
    "bf16 weights": ["policy.dtype=bfloat16"],
}


@pytest.mark.parametrize("overrides", SAVED.values(), ids=SAVED)
def test_activations_are_those_that_the_loaded_model_keeps(make_recipe, overrides):
    """By the estimate on tensors without numbers, and of the real model on as many tokens."""
    settings, tokens = make_recipe(*overrides), 100
    model = load_policy(settings.policy, load_tokenizer(settings.policy), seed=0).train()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model.causal.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    assert states.last_hidden_state.requires_grad
    found = kept(settings.policy.model[0], settings.policy, low=False)
    assert found is not None
    assert found.of(tokens, layers=2) == pytest.approx(sum(size for size, _ in saved.values()), rel=0.1)
    assert bool(found.recomputed) == settings.policy.gradient_checkpointing


def test_arithmetic_in_bf16_keeps_less_of_tokens_and_copies_of_weights(make_recipe):
    plain, mixed = (parts(make_recipe(f"train.precision={kind}"))["activations"] for kind in ("fp32", "bf16"))
    assert WEIGHTS * 2 / 2 < mixed < plain + WEIGHTS * 2


@pytest.mark.parametrize("overrides", [[], ["train.micro_tokens=30"], ["train.micro_batch_size=8"]])
def test_the_largest_micro_batch_is_that_of_the_run(make_recipe, overrides):
    settings = make_recipe(*overrides)
    with computing(settings.train) as accelerator:
        prepared = prepare(settings, accelerator, Console(quiet=True))
        train, most = settings.train, 0
        for batch in islice(prepared.source, prepared.plan.steps):
            shards = shard(batch, train.micro_batch_size, accelerator, train.micro_tokens)
            for micro in shards.micro_batches:
                rows = batch.rows(micro.rows)
                most = max(most, sum(map(len, rows.prompt_ids)) + int(rows.lengths.sum()))
    activations = next(part for part in dry_run(settings).memory if part.what == "activations")
    assert f"at most {most:,} tokens" in activations.formula


def test_what_takes_turns_counts_once():
    parts = [Part("a", 5, ""), Part("b", 3, "", "update"), Part("c", 4, "", "drawing"), Part("d", None, "")]
    assert peak(parts) == 9
    turns = [*parts, Part("e", 2, "", "head"), Part("f", 3, "", "layers")]
    assert peak(turns) == 5 + 3 + 3 and peak([*turns, Part("g", 5, "", "drawing")]) == 5 + 9


def test_with_checkpointing_the_head_is_done_before_a_layer_is_computed_again(make_recipe):
    settings = make_recipe("policy.gradient_checkpointing=true")
    whole = kept(settings.policy.model[0], make_recipe().policy, low=False)
    checked = dry_run(settings)
    found = {part.what: part for part in checked.memory}
    assert whole is not None and found["computed again"].size == TOKENS * whole.by_token_and_layer
    assert found["copies for attention"].size == (2 * ATTENDED + TOKENS) * 16 * 4  # in one layer at a time
    turn = ("computed again", "copies for attention", "their gradients")
    in_layer, in_head = sum(found[what].size or 0 for what in turn), found["logits"].size or 0
    rest = sum(part.size or 0 for what, part in found.items() if what not in {*turn, "logits"})
    assert in_layer > in_head > 0 and peak(checked.memory) == rest + in_layer

    few = estimate_memory(checked.plan, MicroBatch(tokens=2, predicted=5000, alone=False, longest=2))
    short = sum(part.size or 0 for part in few if part.what not in {*turn, "logits"})
    assert peak(few) == short + 5000 * 30 * 2 * 4


def test_what_is_computed_again_does_not_go_as_gradients_come(make_recipe):
    """The first layer's turn comes last, when the gradients of all others are there."""
    plan = dry_run(make_recipe("policy.gradient_checkpointing=true")).plan
    few = estimate_memory(plan, MicroBatch(tokens=2, predicted=2, alone=True, longest=2))
    found = {part.what: part.size or 0 for part in few}
    assert found["freed meanwhile"] == -found["activations"] > -found["policy: gradients"]
    assert peak(few) == sum(found[what] for what in found if what not in {"activations", "freed meanwhile", "logits"})


def test_one_completion_a_prompt_is_packed_and_copied_for_attention_too(make_recipe):
    found = parts(make_recipe("evaluate.prompts=0", objective="SFT"))
    tokens = 3 * (10 + 3)
    assert found["copies for attention"] == 2 * (2 * tokens + tokens) * 16 * 4


def test_memory_of_an_adapter_is_that_of_the_adapter(make_recipe):
    settings = make_recipe("policy.adapter.r=4")
    model = load_policy(settings.policy, load_tokenizer(settings.policy), seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 4 * ENDS
    found = parts(settings)
    assert (found["policy: weights"], found["policy: gradients"]) == (WEIGHTS * 4, trained * 4)
    assert found["reference"] == 0


@pytest.mark.parametrize("double", [True, False])
def test_weights_in_4_bits_are_as_many_bytes_as_the_loaded_model_has(make_recipe, double):
    pytest.importorskip("bitsandbytes")
    settings = make_recipe("policy.adapter.r=4", f"policy.quantization={{type: nf4, double: {str(double).lower()}}}")
    model = load_policy(settings.policy, load_tokenizer(settings.policy), seed=0)
    held = 0
    for weight in (p for name, p in model.named_parameters() if "lora_" not in name):
        state = getattr(weight, "quant_state", None)
        scales = [] if state is None else [state.absmax, *([state.state2.absmax] if double else [])]
        held += sum(tensor.numel() * tensor.element_size() for tensor in (weight, *scales))
    found = parts(settings)
    assert found["policy: weights"] == pytest.approx(held, rel=0.05) and held < 0.6 * WEIGHTS * 4
    assert found["a layer made whole"] == 16 * 24 * 4 and found["reference"] == 0


def test_an_adapter_on_16_bits_has_32_and_an_optimiser_of_8_bits_its_own(make_recipe):
    found = parts(make_recipe("policy.adapter.r=4", "policy.dtype=bfloat16"))
    assert (found["policy: gradients"], found["policy: optimiser"]) == (4 * ENDS * 4, 4 * ENDS * 4 * 2)
    pytest.importorskip("bitsandbytes")
    for dtype in ("float32", "bfloat16"):
        small = parts(make_recipe("train.optimizer=adamw_8bit", f"policy.dtype={dtype}"))
        assert small["policy: optimiser"] == WEIGHTS * (2 + 2 * 4 / 256)


def test_sharded_each_process_has_its_share_and_two_layers_whole(make_recipe, monkeypatch):
    alone = parts(make_recipe("train.shard=fsdp2"))
    assert alone == parts(make_recipe())  # of one process, nothing is divided
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = parts(make_recipe("train.shard=fsdp2"))
    for what in ("policy: weights", "policy: gradients", "policy: optimiser", "reference"):
        assert found[what] == alone[what] / 2
    layer = (WEIGHTS - 960) / 2  # norms outside of layers counted with them
    assert found["gathered"] == 2 * (960 * 4 + 2 * layer * 4)
    assert "copies for attention" not in found  # prompts are read with each of their completions, and padded
    assert found["their gradients"] == 3 * 2 * (10 + 3) * 2 * 24 * 4


def test_memory_of_rollouts_and_a_critic(make_recipe, lm_folder):
    online = (
        "source.rollouts.completions=2",
        "source.rollouts.sampling.max_tokens=5",
        "feedback=prefopt.testbeds.pocket:gold",
    )
    found = parts(make_recipe(*online, f"policy.critic.model={lm_folder}", "reference.dtype=bfloat16", objective="PPO"))
    assert (
        found["keys and values"] == 8 * 2 * LONGEST * 2 * (2 * 8) * 4
    )  # rows × tokens × layers × 2 of one head × bytes
    assert found["critic: weights"] > 0 and found["reference"] == WEIGHTS * 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("EleutherAI/pythia-2.8b", 2.8e9),
        ("lab/eleuther-pythia2.8b-hh-sft", 2.8e9),
        ("mistralai/Mistral-7B-v0.1", 7e9),
        ("cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr", 1e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
    ],
)
def test_size_by_name(name, parameters):
    size = size_of(name)
    assert size is not None and size.parameters == parameters and "roughly" in size.source


@pytest.mark.parametrize(
    "name", ["openai-community/gpt2-large", "sentence-transformers/all-MiniLM-L6-v2", "lab/b2-4bit"]
)
def test_a_name_without_a_size_has_none(name):
    assert size_of(name) is None


def test_layers_of_a_name_are_about_those_of_the_model():
    size = size_of("mistralai/Mistral-7B-v0.1")  # which has 32 of 4096
    assert size is not None
    assert size.layers == pytest.approx(32, rel=0.05) and size.width == pytest.approx(4096, rel=0.05)


def test_batches_are_cut_as_the_trainer_cuts_them(make_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = dry_run(make_recipe("train.minibatch_size=4", "train.passes=2"))
    lines = list(describe_dry_run(made))
    assert "10 steps on" in lines[0] and "rows: 40 train" in lines[0]
    assert lines[1] == "batch: 8 prompts × 2 completions, 4 optimiser steps of 4; at most 256 tokens a batch"
    assert lines[2] == (
        "each of 3 processes: 2 prompts of an optimiser step, in 1 × 2 (at most 64 tokens a forward pass)"
    )
    assert lines[-1] == "nothing to download"


def test_the_data_are_shown_as_the_run_shows_them(make_recipe, tmp_path):
    shown = []
    settings = make_recipe("source.max_completion_tokens=2", "train.epochs=null", "train.steps=1", "evaluate.prompts=0")
    for look in (dry_run, lambda settings, console: run(settings, folder=tmp_path / "run", console=console)):
        console = Console(file=io.StringIO(), width=100)
        look(settings, console)
        text = console.file.getvalue()
        shown.append(text[text.index("  train") :].partition("\n\n")[0].partition("  threads")[0].strip())
    assert shown[0] == shown[1]
    assert "completions cut" in shown[0] and "first training row" in shown[0]


def test_what_is_dropped_and_what_contradicts_itself_is_counted_as_the_manifest_has_it(make_recipe, tmp_path):
    settings = make_recipe("source.too_long=drop", "train.epochs=null", "train.steps=1", "evaluate.prompts=0")
    lines = [PAIRS.replace("film", "film" + " very" * n) for n in range(14)]
    same = PAIRS.replace("bad", "good")
    other = '{"prompt": "a food", "chosen": "was good", "rejected": "was bad", "votes": [1, 3]}\n'
    (tmp_path / "pairs.jsonl").write_text("".join([*lines, same, lines[0], other]))
    console = Console(file=io.StringIO(), width=120)
    counts = dry_run(settings, console).plan.counts
    assert (
        counts["train"].items()
        >= {
            "rows dropped: the prompt is too long": 4,
            "rows that repeat an earlier one": 1,
            "rows whose scores and votes (or preference) order completions differently; scores decide": 1,
            "prompts kept: with completions that are the same": 1,
        }.items()
    )
    shown = console.file.getvalue()
    assert "13 of 17 rows" in shown and all(counted(count, what) in shown for what, count in counts["train"].items())
    run(settings, folder=tmp_path / "run", console=Console(quiet=True))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"] == {
        **counts,
        "validation": {},
        "test": {},
    }


def rated(tmp_path, *, clear, tied):
    """Rows whose completions a score tells apart, and rows that it does not."""
    lines = [
        json.dumps(
            {"prompt": "film" + " very" * n, "completions": ["was good", "was bad"], "scores": [1, int(n > clear)]}
        )
        for n in range(1, clear + tied + 1)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))


def test_rows_that_batches_leave_out_are_counted_under_those_to_train_on(make_recipe, tmp_path):
    rated(tmp_path, clear=14, tied=6)
    (tmp_path / "test.jsonl").write_text(PAIRS)
    settings = make_recipe(f"source.test={{data: {tmp_path}/test.jsonl}}", "evaluate.prompts=0")
    console = Console(file=io.StringIO(), width=120)
    checked = dry_run(settings, console)
    train, test = console.file.getvalue().split("  test ")
    assert "14 of 20 rows" in train and "6 completions dropped: tied with another one" in train
    assert "dropped" not in test.partition("first training row")[0]
    assert next(describe_dry_run(checked)).endswith("rows: 14 of 20 train, 0 validation, 1 test")
    folder = RunFolder(run(settings, folder=tmp_path / "run", console=Console(quiet=True)).folder)
    data = folder.manifest()["data"]["train"]
    assert (data["rows"], data["trained_on"]) == (20, 14)
    assert "14 of 20 rows to train on" in (folder.policy / "README.md").read_text()


def test_too_few_rows_are_told_with_where_the_others_are(make_recipe, tmp_path):
    rated(tmp_path, clear=4, tied=36)
    with pytest.raises(PrefoptError) as refused:
        dry_run(make_recipe("source.split=[0.8, 0.1, 0.1]"))
    held_out = r"\(of 40: (\d+) held out for validation and (\d+) held out for test \(source\.split\)"
    told = re.search(
        rf"the data have (\d+) rows? to train on {held_out}; .*; (\d+) prompts dropped", str(refused.value)
    )
    assert told is not None and sum(map(int, told.groups())) == 40


def test_a_part_of_which_nothing_fits_is_refused(make_recipe):
    with pytest.raises(
        PrefoptError, match=r"the train rows: none of 40 is left\. source\.too_long is drop, and 40 are longer"
    ):
        dry_run(make_recipe("source.too_long=drop", "source.max_completion_tokens=2"))


def test_prompts_that_are_measured_and_trained_on_are_said(make_recipe, tmp_path):
    (tmp_path / "test.jsonl").write_text(
        PAIRS.replace("film", "film  VERY") + PAIRS.replace("film", "film very ") + PAIRS
    )
    said = [
        w
        for w in dry_run(make_recipe(f"source.test={{data: {tmp_path}/test.jsonl}}")).plan.warnings
        if "remembered" in w
    ]
    assert (
        len(said) == 1 and "of 3 test rows, 1 have a prompt that is trained on and 2 have one that differs" in said[0]
    )


def test_a_hub_id_would_be_downloaded_and_anything_else_is_refused(make_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = dry_run(make_recipe("policy.model=[gone, lab/x-1b]", "source.data=lab/pairs", "reference.model=lab/x-1b"))
    assert (made.downloads.models, made.downloads.data) == (["lab/x-1b"], ["lab/pairs"])
    assert "2 × rows ÷ 8 steps on lab/x-1b; rows: not known before they are there" in next(describe_dry_run(made))
    for wrong, expected in [
        ("policy.model=gone", "no model at gone"),
        ("source.data=gone.jsonl", "no such file"),
        ("source.data=lab/x/pairs", "neither a file nor a data set"),
        ("source.adapt=gone.py:pair", "no file gone.py"),
    ]:
        with pytest.raises(PrefoptError, match=expected):
            dry_run(make_recipe(wrong))
    with pytest.raises(PrefoptError, match="asking the hub failed"):  # outside of a dry run it is asked, as ever
        find_model(["lab/x-1b"])


def test_what_needs_no_download_is_still_checked(make_recipe):
    hub = "source.data=lab/pairs"
    for wrong, expected in [
        ("objective.bta=1", "has no field 'bta'"),
        ("objective=PPO", "needs completions from the current policy"),
        ("evaluate.gold=nowhere.py:gold", "no file nowhere.py"),
    ]:
        with pytest.raises(PrefoptError, match=expected):
            dry_run(make_recipe(hub, wrong))
