"""What tests of judges share: a scripted backend, a chat tokenizer."""

from dataclasses import dataclass, field

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.feedback.judges import Answer

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Scripted:
    """A backend that answers by a function of the question, last question first."""

    say: object
    asked: list = field(default_factory=list)
    identity = {"kind": "scripted"}  # noqa: RUF012

    def check(self):
        """Nothing can be wrong."""

    def ask(self, questions):
        self.asked += questions
        for i in reversed(range(len(questions))):
            said = self.say(questions[i])
            yield i, said if isinstance(said, Answer) else Answer(text=said, prompt_tokens=3, completion_tokens=1)


@pytest.fixture
def scripted():
    return Scripted


@pytest.fixture(scope="session")
def chat_tokenizer():
    """One token a byte, with the control tokens and the form of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "@@stop"]})
    return tokenizer
