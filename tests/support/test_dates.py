"""Chat templates that write today's date write the run's."""

from datetime import date

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.support.dates import current_date, fixed_date

LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "Today Date: {{ date_string }}"
)
GPT_OSS = '{%- macro system() -%}Current date: {{ strftime_now("%Y-%m-%d") }}{%- endmacro -%}{{- system() -}}'


def written(template):
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = template
    return tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)


@pytest.mark.parametrize(
    ("template", "text"), [(LLAMA, "Today Date: 03 Feb 2024"), (GPT_OSS, "Current date: 2024-02-03")]
)
def test_templates_write_the_fixed_date_and_then_todays_again(template, text):
    before = written(template)
    with fixed_date(date(2024, 2, 3)):
        assert written(template) == text
        assert current_date() == date(2024, 2, 3)
        with fixed_date(date(2023, 1, 1)):
            assert current_date() == date(2023, 1, 1)
        assert written(template) == text
    assert written(template) == before != text
    assert current_date() == date.today()


def test_the_date_comes_back_after_an_error():
    with pytest.raises(KeyError), fixed_date(date(2024, 2, 3)):
        raise KeyError
    assert current_date() == date.today()
