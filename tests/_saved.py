"""Trained models of every kind, the folders they are saved in, and what transformers and peft alone read there."""

import warnings

import torch
from _architectures import base_model
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt import Needs
from prefopt.policy import load_policy, load_scorer
from prefopt.recipe import Adapter
from prefopt.recipe import Policy as Spec

KINDS = ("full", "LoRA", "LoRA on LoRA", "DoRA", "modules_to_save")
TASKS = ("policy", "scorer")
LORA = {"r": 2, "alpha": 3}


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
