"""Token ids as texts: what stands behind a prompt goes on with it, whatever its tokenizer's decoder does at a beginning."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data import parse, tokenise
from prefopt.data.texts import decode_completion, decode_continuation, decode_following, encode_following

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


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", [" blue", "lue", ".", " the sky", "", "</s>", " "])
def test_what_stands_behind_others_has_its_tokens_again(kind, text):
    tokenizer = TOKENIZERS[kind]()
    (ids,) = encode_following(tokenizer, [text])
    assert encode_following(tokenizer, [decode_following(tokenizer, ids)]) == [ids]
    if kind == "first" and text not in ("", "</s>"):
        assert tokenizer("the sky is a" + text, add_special_tokens=False)["input_ids"][-len(ids) :] == ids
        assert decode_following(tokenizer, ids) == text


def test_messages_of_an_episode_in_a_plain_text_follow_one_another_without_a_blank_of_the_tokenizers():
    tokenizer = sentencepiece("first")
    said = [("assistant", "lue"), ("environment", "."), ("assistant", " a"), ("environment", ","), ("assistant", "b")]
    row = {"prompt": "the sky is b", "completion": [{"role": role, "content": content} for role, content in said]}
    (tokenised,), _ = tokenise([parse(row)], tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(tokenised.completion_ids[0])) == ["lue", ".", "▁a", ",", "b", "</s>"]
    assert tokenised.masks == ((True, False, True, False, True, True),)
