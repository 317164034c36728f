"""Token ids as texts: what stands behind a prompt goes on with it, whatever its tokenizer's decoder does at a beginning."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data.texts import decode_completion, decode_continuation

PIECES = ["▁the", "▁sky", "▁is", "▁blue", "▁a", "▁", "b", "lue", ".", ","]


def sentencepiece(scheme):
    """Splits and decodes as Llama 2's tokenizer does (`first`), or as those that put a blank before every part (`always`)."""
    vocabulary = [("<unk>", -20.0), ("</s>", 0.0), *((piece, -1.0) for piece in PIECES)]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def words():
    vocabulary = ["<unk>", "</s>", "the", "sky", "is", "blue", "a", "."]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(".", "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def byte_level():
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.add_special_tokens({"eos_token": AddedToken("</s>", special=True)})
    return tokenizer


TOKENIZERS = {
    "first": lambda: sentencepiece("first"),
    "always": lambda: sentencepiece("always"),
    "words": words,
    "bytes": byte_level,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "continuation"),
    [("the sky is", " blue ."), ("the sky is", "."), ("the sky is blue.", " the sky"), ("the sky is", " </s>")],
)
def test_a_continuation_joined_to_its_prompt_has_the_tokens_that_were_drawn(kind, prompt, continuation):
    tokenizer = TOKENIZERS[kind]()
    first, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + continuation))
    assert both[: len(first)] == first
    found = decode_continuation(tokenizer, both[len(first) :], prompt)
    assert tokenizer(prompt + found, add_special_tokens=False)["input_ids"] == both
    assert found.strip() == continuation.strip() or kind == "words"


def test_decoding_alone_would_join_two_words():
    tokenizer = sentencepiece("first")
    blue = tokenizer.convert_tokens_to_ids(["▁blue"])
    assert decode_completion(tokenizer, blue) == "blue"
    assert decode_continuation(tokenizer, blue, "the sky is") == " blue"


def test_no_blank_where_the_tokens_are_the_same_without_it():
    """Vocabularies that split at signs: the text stays what it is alone."""
    tokenizer = words()
    sky = tokenizer.convert_tokens_to_ids(["sky"])
    assert decode_continuation(tokenizer, sky, "the") == " sky"
    assert decode_continuation(tokenizer, sky, "the.") == decode_continuation(tokenizer, sky, "the ") == "sky"


def test_a_word_that_goes_on_with_the_prompts_last_has_no_blank():
    tokenizer = sentencepiece("first")
    assert decode_continuation(tokenizer, tokenizer.convert_tokens_to_ids(["lue"]), "the sky is b") == "lue"
    assert decode_continuation(tokenizer, [], "the sky is") == ""
