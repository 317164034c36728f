"""A saved folder is what was measured: transformers and peft alone read from it what prefopt computed."""

import functools
import json
import subprocess
import sys

import pytest
import torch
from _architectures import ARCHITECTURES
from _saved import KINDS, TASKS, measured, numbers, readers, saved

from prefopt import Batch, PrefoptError
from prefopt.policy import load_policy, load_scorer
from prefopt.recipe import Policy as Spec


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
    worst = 0.0
    for seed, reader in enumerate(readers(task, folder)):
        torch.manual_seed(100 + seed)
        found = numbers(reader.eval(), task, batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        worst = max(worst, (found - expected).abs().max().item())
    print(f"\n{name} | {kind} | {task} | {worst:.1e}")  # with `pytest -s`, for the table of docs/models.md
    again = (load_policy if task == "policy" else load_scorer)(Spec(model=str(folder)), padded_tokenizer, seed=7).eval()
    torch.testing.assert_close(measured(again, task, batch), expected, rtol=1e-5, atol=1e-5)


READ_ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
found = []
for task, folder in json.loads(sys.argv[1]):
    torch.manual_seed(12345)
    if task == "policy":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:  # an adapter's base is a policy, which does not say that a reward is one number
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    with torch.no_grad():
        found.append(model.eval()(input_ids=torch.tensor([json.loads(sys.argv[2])])).logits[0].tolist())
assert "prefopt" not in sys.modules
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_process_without_prefopt_reads_the_same(padded_tokenizer, tmp_path):
    cells = [(kind, task) for kind in KINDS for task in TASKS]
    made = [saved("Llama, tied", *cell, tmp_path / "-".join(cell), padded_tokenizer) for cell in cells]
    row = [5, 9, 7, 20, 0]
    places = [(task, str(folder)) for (_, task), (_, folder) in zip(cells, made, strict=True)]
    command = [sys.executable, "-c", READ_ALONE, json.dumps(places), json.dumps(row)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    batch = Batch(((5, 9),), torch.tensor([[row[2:]]]), torch.ones(1, 1, 3, dtype=torch.bool))
    for cell, (model, _), read in zip(cells, made, json.loads(found.strip().splitlines()[-1]), strict=True):
        logits = torch.tensor(read)
        if cell[1] == "policy":
            logits = logits.log_softmax(-1)[1:-1].gather(-1, torch.tensor(row[2:])[:, None])[:, 0]
        say = functools.partial("{}: {}".format, cell)
        torch.testing.assert_close(logits, measured(model, cell[1], batch), rtol=1e-5, atol=1e-5, msg=say)
