"""Folders of models, one as it should be and others each with one thing wrong."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _tiny import CHAT, WORDS, tiny_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

CODE = "open({mark!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
"""Code of a stranger's model, which leaves a mark when it is run."""


def make_models(folder: Path) -> Path:
    """All of them, by name. `tiny`, `chat`, `gpt2` and `reward` are good."""
    tiny_model(folder / "tiny")
    tiny_model(folder / "chat", chat=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _other_architectures(folder)
    for name, change in CHANGES.items():
        change(Path(shutil.copytree(folder / "tiny", folder / name)))
    for name, template in TEMPLATES.items():
        _set(Path(shutil.copytree(folder / "tiny", folder / name)), "tokenizer_config.json", chat_template=template)
    _adapters(folder)
    (folder / "empty").mkdir()
    return folder


def _other_architectures(folder: Path) -> None:
    words, ends = WORDS + 3, {"eos_token_id": WORDS + 1, "pad_token_id": WORDS}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    reward = LlamaConfig(vocab_size=words, num_labels=1, **small, **ends)
    models = {
        "encoder": BertForMaskedLM(BertConfig(vocab_size=words, max_position_embeddings=64, **small)),
        "translator": T5ForConditionalGeneration(
            T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=words, n_positions=32, n_embd=16, n_layer=1, n_head=2, **ends)),
        "reward": LlamaForSequenceClassification(reward),
        "three-classes": LlamaForSequenceClassification(LlamaConfig(**reward.to_dict() | {"num_labels": 3})),
    }
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    _change_weights(Path(shutil.copytree(folder / "reward", folder / "headless-reward")), _without("score"))


def _adapters(folder: Path) -> None:
    """LoRA on the queries of `tiny`."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    bases = {"orphan": "models/nowhere", "baseless": None, "unfilled": "models/tiny", "strange": "models/tiny"}
    for name, base in (bases | {"ill-fitting": "models/tiny", "own-base": "models/own-base"}).items():
        (folder / f"adapter-{name}").mkdir()
        _write(
            folder / f"adapter-{name}" / "adapter_config.json", json.dumps(config | {"base_model_name_or_path": base})
        )
    for name, place, rank in (
        ("strange", "transformer.h.{}.attn.query", 4),
        ("ill-fitting", "model.layers.{}.self_attn.q_proj", 8),
    ):
        names = [f"base_model.model.{place}.lora_{part}.weight".format(layer) for layer in range(2) for part in "AB"]
        shapes = [(rank, 16) if "lora_A" in key else (16, rank) for key in names]
        save_file(
            {key: torch.ones(shape) for key, shape in zip(names, shapes, strict=True)},
            folder / f"adapter-{name}" / "adapter_model.safetensors",
        )
    (folder / "adapter-cut").mkdir()
    _write(folder / "adapter-cut" / "adapter_config.json", json.dumps(config)[:30])


def _write(file: Path, content: str | bytes) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def _set(folder: Path, file: str = "config.json", **keys: Any) -> None:
    content = json.loads((folder / file).read_text()) | keys
    _write(folder / file, json.dumps({key: value for key, value in content.items() if value is not ...}))


def _remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def _without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def _renamed(this: str, that: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {name.replace(this, that): weight for name, weight in weights.items()}


def _not_a_number(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights["model.norm.weight"][3] = float("nan")
    return weights


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    _remove(folder, "*.safetensors")


def _change_words(folder: Path, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = change(content["model"]["vocab"])
    _write(file, json.dumps(content))


def _with_code(folder: Path, file: str, code: str, **keys: Any) -> None:
    _set(folder, file, **keys)
    _write(folder / "strangers.py", CODE.format(mark=str(folder / "RAN")) + code)


def _bytes_of(folder: Path, name: str, content: bytes | None = None, most: int | None = None) -> None:
    file = folder / name
    _write(file, file.read_bytes()[:most] if content is None else content)


CHANGES: Mapping[str, Callable[[Path], None]] = {
    "unweighted": lambda f: _remove(f, "*.safetensors"),
    "cut": lambda f: _bytes_of(f, "model.safetensors", most=3000),
    "noise": lambda f: _bytes_of(f, "model.safetensors", bytes(range(256)) * 20),
    "weightless": lambda f: _bytes_of(f, "model.safetensors", b""),
    "pickled": _as_pickle,
    "half-sharded": lambda f: (
        _remove(f, "*.safetensors"),
        _write(
            f / "model.safetensors.index.json",
            '{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}',
        ),
    )[0],
    "cut-config": lambda f: _bytes_of(f, "config.json", most=20),
    "listed-config": lambda f: _bytes_of(f, "config.json", b'["llama"]'),
    "unknown-kind": lambda f: _set(f, model_type="perceptron"),
    "kindless": lambda f: _set(f, model_type=...),
    "deeper": lambda f: _set(f, num_hidden_layers=3),
    "wider": lambda f: _set(f, intermediate_size=48),
    "more-words-than-weights": lambda f: _set(f, vocab_size=90),
    "gap": lambda f: _change_weights(f, _without("layers.1.self_attn.o_proj")),
    "misnamed": lambda f: _change_weights(f, _renamed("down_proj", "down")),
    "not-a-number": lambda f: _change_weights(f, _not_a_number),
    "untokenized": lambda f: _remove(f, "token*", "special*"),
    "cut-tokenizer": lambda f: _bytes_of(f, "tokenizer.json", most=100),
    "shuffled-words": lambda f: _change_words(f, lambda words: words | {f"w{i}": WORDS - 1 - i for i in range(WORDS)}),
    "more-words": lambda f: _change_words(f, lambda words: words | {f"x{i}": WORDS + 3 + i for i in range(20)}),
    "endless": lambda f: _set(f, "tokenizer_config.json", eos_token=..., pad_token=...),
    "strangers-model": lambda f: _with_code(
        f,
        "config.json",
        "class C(LlamaConfig):\n    model_type = 'own'\nclass M(LlamaForCausalLM):\n    pass\n",
        model_type="own",
        auto_map={"AutoConfig": "strangers.C", "AutoModelForCausalLM": "strangers.M"},
    ),
    "strangers-tokenizer": lambda f: _with_code(
        f,
        "tokenizer_config.json",
        "class T(PreTrainedTokenizerFast):\n    pass\n",
        auto_map={"AutoTokenizer": ["strangers.T", None]},
        tokenizer_class="T",
    ),
}
"""What is done to a copy of `tiny`."""

TEMPLATES = {
    "template-open": CHAT.removesuffix("{% endif %}"),
    "template-strict": "{{ raise_exception('one turn at a time') }}",
    "template-silent": "{# nothing #}",
}
