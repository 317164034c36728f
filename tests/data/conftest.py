"""Tiny tokenizers, one of each kind that the tokenisation must serve."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_EOS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def characters(*specials: str, merges: tuple[str, ...] = ()) -> Tokenizer:
    """One token per printable character, and one for each of `merges`."""
    vocabulary = [*specials, *merges, *(chr(i) for i in range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=" "))
    pattern = "|".join([*merges, r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@pytest.fixture(scope="session")
def plain():
    """EOS, nothing added; "ab" is one token."""
    return PreTrainedTokenizerFast(tokenizer_object=characters("</s>", merges=("ab",)), eos_token="</s>")


@pytest.fixture(scope="session")
def with_bos():
    """Puts a BOS before every text by itself, like Llama's."""
    tokenizer = characters("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def chatml():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters("<|im_start|>", "<|im_end|>"), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def chat_without_eos():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters("</s>"), eos_token="</s>")
    tokenizer.chat_template = NO_EOS
    return tokenizer


@pytest.fixture(scope="session")
def bert():
    """[CLS] text [SEP], no EOS, lower case."""
    tokenizer = characters("[CLS]", "[SEP]")
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]")
