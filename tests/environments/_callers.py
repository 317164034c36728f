"""A model that does nothing but call tools, answer and end its turns, in a tokenizer of bytes with Qwen's chat template."""

import json
from pathlib import Path
from typing import Any

import torch
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|im_end|>"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def calling_model(folder: Path, actions: list[str], seed: int = 0) -> Path:
    """A GPT-2 that writes these texts, a token each, and the end of a turn: which, hangs on the last token and its position."""
    tokenizer = _tokenizer(actions)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        written = tokenizer.convert_tokens_to_ids([*actions, END])
        for embeddings in (model.transformer.wte, model.transformer.wpe):
            embeddings.weight.normal_()
            embeddings.weight[:, 0] = 5.0  # in every hidden state, for nothing writes there
        for projection in (model.transformer.h[0].attn.c_proj, model.transformer.h[0].mlp.c_proj):
            projection.weight[:, 0] = projection.bias[0] = 0
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = -100.0
        model.lm_head.weight[written] = torch.randn(len(written), 32)
        model.lm_head.weight[written, 0] = 0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 0.7  # turns of one or two texts
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(actions: list[str]) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, normalized=False) for text in ("<|im_start|>", END, "<|endoftext|>")])
    core.add_tokens([AddedToken(text, normalized=False) for text in actions])
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token="<|endoftext|>", chat_template=template
    )
