"""What users gave in conversations is plain data afterwards: nothing added by Arrow, nothing lost, nothing of another type."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prefopt.data import load_examples, parse
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given


def asked(content, **more):
    return parse({"prompt": [{"role": "user", "content": content, **more}]}, "d.jsonl:7").prompt[0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "hi"}], "hi"),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "text", "text": "a", "image": None}, "b"], "ab"),
        (np.array([{"type": "text", "text": "hi"}], dtype=object), "hi"),
        (({"type": "input_text", "text": "x"}, {"type": "output_text", "text": "y"}), "xy"),
        ([], ""),
        ("plain", "plain"),
        (np.str_("numpy"), "numpy"),
    ],
)
def test_content_in_parts_of_text_is_their_text(content, text):
    assert asked(content)["content"] == text


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([{"type": "image", "url": "x.png"}], "of type 'image'"),
        ([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}], "of type 'image_url'"),
        ([{"type": "text"}], "of type 'text'"),
        ([3], "int 3"),
        ({"text": "hi"}, "dict"),
        (5, "int 5"),
    ],
)
def test_content_that_is_no_text_is_refused_by_name(content, name):
    with pytest.raises(PrefoptError, match=rf"d\.jsonl:7: .*{name}"):
        asked(content)


CALL = {"type": "function", "function": {"name": "look", "arguments": {"word": "x"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"word": {"type": "string"}}}}}


def calling(arguments):
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def row(arguments=None, **more):
    turns = calling(arguments or {"word": "x"})
    return {"prompt": [{"role": "user", "content": "q"}], "completion": turns, **more}


def test_what_arrow_fills_in_is_left_out_at_every_depth(tmp_path):
    other = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}
    rows = [row({"word": "x"}, tools=[TOOL]), row({"a": 1}, tools=[other])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    examples = load_examples(tmp_path / "d.parquet")
    calls = [example.completions[0][0]["tool_calls"][0]["function"]["arguments"] for example in examples]
    assert calls == [{"word": "x"}, {"a": 1}]
    assert [example.columns["tools"] for example in examples] == [[TOOL], [other]]


def test_a_null_that_json_has_stays(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(row({"word": None})) + "\n")
    (example,) = load_examples(tmp_path / "d.jsonl")
    assert example.completions[0][0]["tool_calls"][0]["function"]["arguments"] == {"word": None}


def test_json_columns_of_parquet_are_decoded_at_every_depth(tmp_path):
    nested = pa.array([[json.dumps(TOOL)]], pa.list_(pa.string())).cast(pa.list_(pa.json_()))
    columns = {
        "prompt": pa.array([[{"role": "user", "content": "q"}]]),
        "completion": pa.array([json.dumps(calling({"word": None}))]).cast(pa.json_()),
        "tools": nested,
    }
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    (example,) = load_examples(tmp_path / "d.parquet")
    assert example.columns["tools"] == [TOOL]
    assert example.completions[0][0]["tool_calls"][0]["function"]["arguments"] == {"word": None}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], np.array([TOOL], dtype=object)])
def test_tools_are_schemas_in_whatever_form_they_come(tools):
    assert parse(row(tools=tools)).columns["tools"] == [TOOL]


@pytest.mark.parametrize("tools", ["hammer", {"name": "x"}, [3], 7])
def test_tools_of_another_kind_are_refused(tools):
    with pytest.raises(PrefoptError, match=r"d\.jsonl:1: .*tools"):
        parse(row(tools=tools), "d.jsonl:1")


def test_tool_calls_as_json_text_are_decoded():
    turns = [{"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}]
    assert parse({**row(), "completion": turns}).completions[0][0]["tool_calls"] == [CALL]


@pytest.mark.parametrize("value", ['{"enable_thinking": false}', {"enable_thinking": np.bool_(False)}])
def test_template_settings_are_read_from_text_and_numpy(value):
    settings = parse(row(chat_template_kwargs=value)).columns["chat_template_kwargs"]
    assert settings == {"enable_thinking": False} and settings["enable_thinking"] is False


def test_template_settings_in_csv(tmp_path):
    prompt = json.dumps([{"role": "user", "content": "q"}]).replace('"', '""')
    (tmp_path / "d.csv").write_text(
        f'prompt,completion,chat_template_kwargs\n"{prompt}",yes,"{{""enable_thinking"": false}}"\n'
    )
    (example,) = load_examples(tmp_path / "d.csv")
    assert example.columns["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_long_cell_of_csv_is_read_whole(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,completion\nq," + "a" * 200_000 + "\n")
    assert len(load_examples(tmp_path / "d.csv")[0].completions[0]) == 200_000


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_numbers_of_libraries_are_plain_at_every_depth(array):
    turns = calling({"list": array([1, 2]), "deep": [{"n": array([0.5])}]})
    made = parse({**row(), "completion": turns}).completions[0][0]["tool_calls"][0]["function"]["arguments"]
    assert made == {"list": [1, 2], "deep": [{"n": [0.5]}]}
    assert type(made["list"][0]) is int


def test_steps_of_one_answer_are_not_rivals():
    stepwise = {"prompt": "q", "completions": ["one", "two"], "labels": [True, False]}
    with pytest.raises(PrefoptError, match=r"d\.jsonl:1: .*steps of one answer.*source: \{adapt"):
        parse(stepwise, "d.jsonl:1")


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "q", "response": "a", "helpfulness": 3},
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        {"conversation_a": [], "conversation_b": [], "winner": "model_a"},
        {"question": "q", "answers": ["a"]},
    ],
)
def test_rows_of_other_columns_name_adapt(columns):
    columns = {"completion": "x", **columns} if "prompt" not in columns else {"chosen": "a", **columns}
    with pytest.raises(PrefoptError, match=r"source: \{adapt: mine\.py:pair\}"):
        parse(columns, "d.jsonl:1")


@pytest.mark.parametrize("name", ["prompt", "chosen", "note"])
def test_half_a_character_is_refused_with_its_column(name):
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", name: "x \ud83d y"}
    with pytest.raises(PrefoptError, match=rf"d\.jsonl:3: '{name}' holds .*surrogate"):
        parse(pair, "d.jsonl:3")


@pytest.mark.parametrize("error", [SystemExit(0), ValueError("no"), RuntimeError("no"), StopIteration()])
def test_an_adapt_function_that_fails_names_the_row(tmp_path, error):
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n')

    def change(row):
        raise error

    with pytest.raises(PrefoptError, match=r"d\.jsonl:1: .*cannot read this row"):
        load_examples(tmp_path / "d.jsonl", adapt=Given(change))


@pytest.mark.parametrize("code", ["0", "1", "'bye'"])
def test_a_data_function_that_exits_is_an_error(tmp_path, code):
    (tmp_path / "rows.py").write_text(f"import sys\ndef rows():\n    yield {{'prompt': 'p'}}\n    sys.exit({code})\n")
    with pytest.raises(PrefoptError, match=r"SystemExit after row 1"):
        load_examples(f"{tmp_path}/rows.py:rows")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_that_cannot_be_opened(tmp_path, suffix):
    (tmp_path / f"link.{suffix}").symlink_to("/nowhere/at/all")
    with pytest.raises(PrefoptError, match=r"link\.\w+.*(cannot be read|no such file|not Parquet)"):
        load_examples(tmp_path / f"link.{suffix}")
    (tmp_path / f"folder.{suffix}").mkdir()
    with pytest.raises(PrefoptError, match=rf"folder\.{suffix}: is a directory"):
        load_examples(tmp_path / f"folder.{suffix}")


@pytest.mark.parametrize("text", ['{"prompt": ' + "[" * 100_000, '{"prompt": ' + "[" * 900 + "]" * 900 + "}"])
def test_nesting_that_is_too_deep(tmp_path, text):
    (tmp_path / "d.jsonl").write_text(text + "\n")
    with pytest.raises(PrefoptError, match=r"d\.jsonl:1: "):
        load_examples(tmp_path / "d.jsonl")


def test_integers_too_large_for_a_float():
    with pytest.raises(PrefoptError, match=r"d\.jsonl:1: 'scores' holds an integer that is too large"):
        parse({"prompt": "p", "completions": ["a", "b"], "scores": [10**400, 1]}, "d.jsonl:1")


@pytest.mark.parametrize("split", [None, "train"])
def test_streams_of_the_hub_are_read(tmp_path, split, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "d.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    arguments = {"data_files": str(tmp_path / "d.jsonl"), "streaming": True} | ({"split": split} if split else {})
    assert [example.prompt for example in load_examples("json", arguments)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("origin", "reddit"), ("gold", "42"), ("cost", 0.03), ("trained", False), ("preference", "A"), ("votes", 12)],
)
def test_metadata_under_a_name_of_ours_is_told_how_to_be_renamed(name, value):
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", name: value}
    with pytest.raises(PrefoptError, match=rf"d\.jsonl:1: '{name}' must be .*rename it.*adapt"):
        parse(pair, "d.jsonl:1")
