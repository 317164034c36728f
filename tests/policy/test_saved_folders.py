"""A saved folder is what was measured: transformers and peft alone read from it what prefopt computed."""

import copy
import json
import subprocess
import sys
import warnings

import pytest
import torch
from _architectures import ARCHITECTURES, base_model
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt import Batch, Needs, PrefoptError
from prefopt.policy import load_policy, load_scorer
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec

KINDS = ("full", "LoRA", "LoRA on LoRA", "DoRA", "modules_to_save")
TASKS = ("policy", "scorer")
LORA = {"r": 2, "alpha": 3}


@pytest.fixture(scope="module")
def padded_tokenizer(tokenizer):
    """With a padding token, which the models know; scorers look for it."""
    own = copy.deepcopy(tokenizer)
    own.pad_token = "<unk>"
    return own


def whole_modules(folder):
    """The names of the embedding and the head, which an adapter is to hold whole."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    held = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return tuple(name.rpartition(".")[2] for name, module in model.named_modules() if id(module) in held)


def adapter_of(kind, task, folder):
    """The recipe's adapter."""
    if kind == "modules_to_save":
        names = whole_modules(folder)
        return Adapter(**LORA, modules_to_save=names if task == "policy" else names[:1])
    return {"full": None, "DoRA": Adapter(**LORA, dora=True)}.get(kind, Adapter(**LORA))


def trained(task, spec, tokenizer, seed):
    """A model in which everything that is trained has moved."""
    model = (load_policy if task == "policy" else load_scorer)(spec, tokenizer, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return model.eval()


def saved(name, kind, task, folder, tokenizer):
    """The model and the folder that it was saved in."""
    spec = Spec(model=str(base_model(name, folder / "base", tokenizer)))
    if kind == "LoRA on LoRA":
        lower = trained(task, spec.model_copy(update={"adapter": Adapter(**LORA)}), tokenizer, 1)
        lower.save(folder / "lower")
        spec = Spec(model=str(folder / "lower"))
    adapter = adapter_of(kind, task, folder / "base")
    model = trained(task, spec.model_copy(update={"adapter": adapter}), tokenizer, 2)
    model.save(folder / "saved")
    return model, folder / "saved"


def readers(task, folder):
    """What reads a folder, other than prefopt."""
    policy = task == "policy"
    more = {} if policy else {"num_labels": 1}
    warnings.filterwarnings(
        "ignore", "(fan_in_fan_out|Model has `tie_word|The following (rank|alpha)_pattern)"
    )  # peft's, while reading
    yield (AutoModelForCausalLM if policy else AutoModelForSequenceClassification).from_pretrained(folder, **more)
    if (folder / "adapter_config.json").is_file():
        yield (AutoPeftModelForCausalLM if policy else AutoPeftModelForSequenceClassification).from_pretrained(
            folder, **more
        )


@torch.no_grad()
def numbers(model, task, batch):
    """What transformers' own forward gives for each row: log-probs of the completion's tokens, or the reward; [N]."""
    found = []
    for b, prompt in enumerate(batch.prompt_ids):
        for k in range(batch.mask.shape[1]):
            length = int(batch.mask[b, k].sum())
            row = torch.tensor([[*prompt, *batch.completion_ids[b, k, :length].tolist()]])
            logits = model(input_ids=row).logits[0]
            if task == "scorer":
                found.append(logits)
                continue
            scores = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            found.append(scores.gather(-1, row[0, len(prompt) :, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def measured(model, task, batch):
    """The same by prefopt."""
    if task == "policy":
        return model(batch, Needs()).logps[batch.mask]
    return model(batch, Needs(rewards=True)).rewards.flatten()


def cells():
    """Every cell; those of one architecture are quick tests."""
    for name in ARCHITECTURES:
        for kind in KINDS:
            for task in TASKS:
                yield pytest.param(name, kind, task, marks=() if name == "Llama, tied" else pytest.mark.slow)


REFUSED = {("Mixtral", "DoRA"), ("Qwen3 MoE", "DoRA")}
"""Experts' weights are one tensor, of which peft 0.21 has no DoRA."""


@pytest.mark.parametrize(("name", "kind", "task"), list(cells()))
def test_a_saved_folder_is_what_was_measured(name, kind, task, padded_tokenizer, make_batch, tmp_path):
    if (name, kind) in REFUSED:
        with pytest.raises(PrefoptError, match=r"policy\.adapter: .*does not work with use_dora"):
            saved(name, kind, task, tmp_path, padded_tokenizer)
        return
    model, folder = saved(name, kind, task, tmp_path, padded_tokenizer)
    batch = make_batch(tokens=12)
    batch.completion_ids[batch.mask & (batch.completion_ids == padded_tokenizer.pad_token_id)] = 5
    expected = measured(model, task, batch)
    assert expected.std() > 1e-2
    for seed, reader in enumerate(readers(task, folder)):
        torch.manual_seed(100 + seed)
        torch.testing.assert_close(numbers(reader.eval(), task, batch), expected, rtol=1e-5, atol=1e-5)
    again = (load_policy if task == "policy" else load_scorer)(Spec(model=str(folder)), padded_tokenizer, seed=7).eval()
    torch.testing.assert_close(measured(again, task, batch), expected, rtol=1e-5, atol=1e-5)


READ_ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
torch.manual_seed(12345)
if sys.argv[2] == "policy":
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
else:  # an adapter's base is a policy, which does not say that a reward is one number
    model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=1)
assert "prefopt" not in sys.modules
with torch.no_grad():
    print(json.dumps(model.eval()(input_ids=torch.tensor([json.loads(sys.argv[3])])).logits[0].tolist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_prefopt_reads_the_same(kind, task, padded_tokenizer, tmp_path):
    model, folder = saved("Llama, tied", kind, task, tmp_path, padded_tokenizer)
    row = [5, 9, 7, 20, 0]
    command = [sys.executable, "-c", READ_ALONE, str(folder), task, json.dumps(row)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    batch = Batch(((5, 9),), torch.tensor([[row[2:]]]), torch.ones(1, 1, 3, dtype=torch.bool))
    logits = torch.tensor(json.loads(found.strip().splitlines()[-1]))
    if task == "policy":
        logits = logits.log_softmax(-1)[1:-1].gather(-1, torch.tensor(row[2:])[:, None])[:, 0]
    torch.testing.assert_close(logits, measured(model, task, batch), rtol=1e-5, atol=1e-5)
