"""Writing completions: where each ends and why, whatever holes its mask has, and the same for every caller."""

import pytest
import torch
from accelerate import Accelerator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prefopt.data import Example, Tokenised
from prefopt.policy import Policy
from prefopt.policy.decode.ends import EndTokens
from prefopt.recipe import Sampling
from prefopt.sources.writing import Completer, _warn_of_turn, batch_of_written, recorded, turns_of, written
from prefopt.support.errors import PrefoptError
from prefopt.types import Sampled, lengths_of

ENDS = EndTokens(frozenset({0}), frozenset({9}))

CONVERSATION = ({"role": "user", "content": "?"},)

SAMPLED = Sampled(
    torch.tensor([[[5, 6, 0, 0], [5, 9, 0, 0]], [[5, 6, 7, 8], [5, 1, 1, 7]]]),
    torch.tensor([[[1, 1, 1, 0], [1, 1, 0, 0]], [[1, 1, 1, 1], [1, 0, 0, 1]]], dtype=torch.bool),
    torch.tensor([[[-1.0, -2, -3, 0], [-1, -2, 0, 0]], [[-1, -2, -3, -4], [-1, 0, 0, -4]]]),
)


class Numbers:
    """A tokenizer that writes a token as its number."""

    def decode(self, ids, **settings):
        return " ".join(map(str, ids))


class Recording:
    """A sampler that draws the same completions and keeps what it was given."""

    def __init__(self):
        self.synced = []

    def sync(self, policy, version):
        self.synced.append((policy, version))

    def __call__(self, model, prompt_ids, completions, settings, seeds):
        self.given = (model, prompt_ids, completions, settings, seeds.tolist())
        return SAMPLED


def test_each_completion_is_cut_behind_its_last_token_and_says_why_it_ended():
    (one, two), (three, four) = written(SAMPLED, ENDS, version=4)
    assert [w.ids for w in (one, two, three, four)] == [(5, 6, 0), (5, 9), (5, 6, 7, 8), (5, 1, 1, 7)]
    assert [w.stop for w in (one, two, three, four)] == ["eos", "stop", "length", "length"]
    assert [w.ended for w in (one, two, three, four)] == [True, True, False, False]
    assert one.logps == (-1, -2, -3) and one.version == 4


def test_tokens_that_the_policy_did_not_write_do_not_shorten_a_completion():
    four = written(SAMPLED, ENDS)[1][1]
    assert four.ids == (5, 1, 1, 7) and four.mask == (True, False, False, True)
    assert four.turns == (range(1), range(3, 4)) and four.logps == (-1, 0, 0, -4)


def test_turns_are_the_runs_of_the_mask():
    assert turns_of([False, True, True, False, True]) == (range(1, 3), range(4, 5))
    assert turns_of([False]) == ()


def test_length_is_a_position_and_not_a_count():
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert lengths_of(mask).tolist() == [3, 0, 4]
    assert lengths_of(mask[:, :0]).tolist() == [0, 0, 0]


def test_a_completion_of_the_data_has_no_version_and_no_log_probs():
    one = recorded((5, 6, 0), (True, False, True), ENDS)
    assert (one.stop, one.version, one.logps) == ("eos", None, None)
    assert recorded((5, 6), None, ENDS).mask == (True, True)


def test_a_completion_without_tokens_is_refused():
    empty = Sampled(torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(1, 1, 2, dtype=torch.bool))
    with pytest.raises(PrefoptError, match="without tokens"):
        written(empty, ENDS)


def rows_of(*prompts):
    return [Tokenised(prompt, (), None, None, Example("")) for prompt in prompts]


def test_a_sampler_is_given_what_the_caller_gave_and_the_weights_when_it_says_so():
    sampler = Recording()
    completer = Completer(sampler, Numbers(), ENDS, Accelerator(cpu=True))
    completer.sync("policy", 3)
    sampling = Sampling(max_tokens=4)
    completions = completer.write("policy", rows_of((1,), (2,)), 2, sampling, torch.tensor([7, 8]), version=3)
    assert sampler.synced == [("policy", 3)]
    assert sampler.given == ("policy", [(1,), (2,)], 2, sampling, [7, 8])
    assert completions == written(SAMPLED, ENDS, 3)
    assert completer.text(completions[0][1], CONVERSATION) == "5 9"


def test_a_sampler_without_a_copy_of_the_weights_is_not_synchronised():
    Completer(lambda *given: SAMPLED, Numbers(), ENDS, Accelerator(cpu=True)).sync("policy", 1)


def test_what_was_written_is_a_batch_again():
    batch = batch_of_written(rows_of((1,), (2, 3)), written(SAMPLED, ENDS))
    assert torch.equal(batch.completion_ids, SAMPLED.completion_ids) and torch.equal(batch.mask, SAMPLED.mask)
    assert batch.prompt_ids == ((1,), (2, 3)) and batch.scores is None


TAGS = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def read(lm_folder):
    """The text of a completion that was written by a policy whose template ends turns otherwise than it ends texts."""
    vocabulary = [*TAGS, *map(chr, range(32, 127)), "\n"]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(TAGS[2:])})

    def text(written_as, template=None, stop=()):
        tokenizer.chat_template = template
        policy = Policy(AutoModelForCausalLM.from_pretrained(lm_folder), tokenizer)
        policy.causal.generation_config.eos_token_id = tokenizer.eos_token_id
        completer = Completer.of(lambda *given: None, policy, Sampling(stop=stop), Accelerator(cpu=True))
        ids = tokenizer(written_as, add_special_tokens=False)["input_ids"]
        return completer.text(recorded(ids, None, completer.ends), CONVERSATION)

    return text


@pytest.mark.parametrize(
    ("written_as", "shown"),
    [
        ("<think>so</think>4<eos>", "<think>so</think>4"),
        ("4</think><eos>", "4</think>"),
        ("4<|im_start|>user\nthanks<eos>", "4<|im_start|>user\nthanks"),
        ("4<pad>5<pad>", "4<pad>5<pad>"),  # cut by its length: all of it
        ("<eos>", ""),
        ("4", "4"),
    ],
)
def test_feedback_sees_every_special_token_but_the_one_that_ended_the_completion(read, written_as, shown):
    assert read(written_as) == shown


@pytest.mark.parametrize(
    ("written_as", "shown"),
    [
        ("4<|im_end|>\n<eos>", "4"),
        ("4<|im_end|>\n", "4<|im_end|>\n"),  # it goes on
        ("4<|im_end|>\n<|im_start|>user\n5<|im_end|>\n<eos>", "4<|im_end|>\n<|im_start|>user\n5"),
        ("4\n<eos>", "4\n"),
    ],
)
def test_what_the_template_writes_between_an_answer_and_eos_is_no_part_of_the_answer(read, written_as, shown):
    assert read(written_as, CHATML) == shown


def test_a_text_of_stop_is_seen_unless_it_is_a_special_token(read):
    assert read("4.", stop=(".",)) == "4."
    assert read("4<|im_end|>", stop=("<|im_end|>",)) == "4"


def test_a_template_that_ends_answers_otherwise_than_completions_end_is_said_once(read, caplog):
    _warn_of_turn.cache_clear()
    for template, stop in ((None, ()), (CHATML, ("<|im_end|>",)), (CHATML.replace("<|im_end|>", "<eos>"), ())):
        read("4<eos>", template, stop)
    assert not caplog.messages
    read("4<eos>", CHATML)
    read("5<eos>", CHATML)
    (said,) = caplog.messages
    assert "ends an answer with <|im_end|>, and completions end with <eos>" in said and "stop: ['<|im_end|>']" in said
