import csv
import json
import tracemalloc

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from prefopt.data import load_examples
from prefopt.support.errors import PrefoptError
from prefopt.support.given import Given

PAIRS = [
    {"prompt": f"p{i}", "chosen": "c", "rejected": "r", "split": "test" if i % 3 == 0 else "train"} for i in range(6)
]
PROMPTS = [row["prompt"] for row in PAIRS]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)) + "\n\n")
    return path


def read(data, *arguments, **settings):
    return [example.prompt for example in load_examples(data, *arguments, **settings)]


def test_jsonl(pairs):
    examples = load_examples(pairs)
    assert [example.prompt for example in examples] == PROMPTS
    assert examples[2].where == f"{pairs}:3"


def test_json(tmp_path, pairs):
    array, lines = tmp_path / "array.json", tmp_path / "lines.json"
    array.write_text(json.dumps(PAIRS, indent=1))
    lines.write_text(pairs.read_text())
    assert read(array) == read(lines) == PROMPTS
    assert load_examples(array)[1].where == f"{array}:row 2"


def test_parquet(tmp_path):
    path = tmp_path / "pairs.parquet"
    rows = [{"prompt": [{"role": "user", "content": "q"}], "completions": ["a", "b"], "scores": [1.0, None], "id": 3}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (example,) = load_examples(path)
    assert example.scores == (1.0, None)
    assert example.completions[0] == ({"role": "assistant", "content": "a"},)
    assert (example.where, example.columns) == (f"{path}:row 1", {"id": 3})


def test_csv(tmp_path):
    path = tmp_path / "rated.csv"
    path.write_text(
        "prompt,completions,scores,margin,embeddings,group,note\n"
        '"two\nlines","[""a"", ""b""]","[1, null]",0.5,"[1, 2]",007,\n'
        '12,"[""a"", ""b""]","[3, 4]",1,"[3, 4]",008,fine\n'
    )
    first, second = load_examples(path)
    assert (first.prompt, first.completions, first.scores, first.group) == (
        "two\nlines",
        ("a", "b"),
        (1.0, None),
        "007",
    )
    assert (second.prompt, second.scores, second.where) == ("12", (3.0, 4.0), f"{path}:4")
    assert second.columns == {"margin": 1, "embeddings": [3, 4], "note": "fine"}
    path.write_text("prompt,completion,label\np,true,false\np,,True\n")
    examples = load_examples(path)
    assert [(e.completions, e.scores) for e in examples] == [(("true",), (-0.5,)), (("",), (0.5,))]


def test_several_files(tmp_path, pairs, monkeypatch):
    other = tmp_path / "more.jsonl"
    other.write_text('{"prompt": "p", "completion": "c"}')
    assert read([pairs, other]) == [*PROMPTS, "p"]
    assert read(str(tmp_path / "*.jsonl")) == ["p", *PROMPTS]
    assert read("pairs.jsonl", folder=tmp_path) == PROMPTS
    monkeypatch.chdir(tmp_path)
    assert load_examples("pairs.jsonl")[0].where == "pairs.jsonl:1"


def test_split_column(pairs):
    assert read(pairs, split="test") == ["p0", "p3"]
    with pytest.raises(PrefoptError, match=r"no row of split 'tset'; there are \['test', 'train'\]"):
        load_examples(pairs, split="tset")


def test_function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def rows(n, text='t'):\n    for i in range(n):\n        yield {'prompt': f'{text}{i}'}\nnot_one = 3\n"
    )
    assert read(f"{path}:rows", {"n": 2, "text": "x"}) == ["x0", "x1"]
    assert read("mine.py:rows", {"n": 1}, folder=tmp_path) == ["t0"]
    with pytest.raises(PrefoptError, match=r"missing a required argument: 'n'; its arguments are \(n, text='t'\)"):
        load_examples(f"{path}:rows")
    with pytest.raises(PrefoptError, match="Did you mean 'rows'"):
        load_examples(f"{path}:row")
    with pytest.raises(PrefoptError, match="is int, not a function"):
        load_examples(f"{path}:not_one")


def test_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    data = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(PAIRS[:4]), "test": datasets.Dataset.from_list(PAIRS[4:])}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **arguments: data)
    assert read("lab/pairs", split="test") == PROMPTS[4:]
    assert load_examples("lab/pairs", split="train")[0].where == "lab/pairs[train]:row 1"
    with pytest.raises(PrefoptError, match=r"has the splits \['test', 'train'\]; say which"):
        load_examples("lab/pairs")
    with pytest.raises(PrefoptError, match="Did you mean 'train'"):
        load_examples("lab/pairs", split="trian")
    with pytest.raises(PrefoptError, match="remote code"):
        load_examples("lab/pairs", {"trust_remote_code": True})


def test_hub_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name):
        raise ConnectionError("Couldn't reach 'lab/pairs' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PrefoptError, match=r"ConnectionError: Couldn't reach.*if you are offline"):
        load_examples("lab/pairs")


def test_the_folder_of_a_labelling_is_told_which_of_its_files_to_name(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(PrefoptError, match=r"labels/\*\.jsonl$"):
        load_examples(str(tmp_path / "labels"))
    (tmp_path / "labels" / "data.jsonl").touch()
    with pytest.raises(PrefoptError, match=r"labels/data\.jsonl$"):
        load_examples(str(tmp_path / "labels"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "p"}\n{"prompt": "p"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"prompt": "p"}\n\n[1]', r"a\.jsonl:3: a row must be an object"),
        (
            "a.jsonl",
            '{"prompt": "p", "chosen": "c", "rejected": "r"}\n{"prompt": "p"}',
            r"a\.jsonl:2: .*Is a value missing",
        ),
        ("a.jsonl", '{"question": "p"}', r"a\.jsonl:1: .*Columns found: \['question'\]"),
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", '{"prompt": "p", "prompt": "q"}', r"a\.jsonl:1: not JSON: the key 'prompt' stands twice"),
        ("a.json", '[{"prompt": [{"role": "user", "role": "x", "content": "q"}]}]', "the key 'role' stands twice"),
        ("a.csv", "prompt,chosen,rejected,chosen\np,a,b,c\n", r"a\.csv:1: the header has 'chosen' twice"),
        ("a.json", "3", "must be a list of objects"),
        ("a.json", '[{"prompt": "p"}, 3]', "a.json:row 2: a row must be an object"),
        ("a.csv", "prompt,completions,scores\np,[1,[2]\n", r"a\.csv:2: completions: not JSON"),
        ("a.csv", "prompt,completion\np,c,c\n", r"a\.csv:2: more values"),
        ("a.csv", 'prompt,completion\np,c\np,"c\n', r"a\.csv:3: not CSV"),
        ("a.parquet", "no", "not Parquet"),
        ("a.txt", "no", "cannot read .txt"),
        ("data", "no", "cannot read a file without suffix"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PrefoptError, match=message):
        load_examples(tmp_path / name)


def test_nothing_there(tmp_path, pairs):
    with pytest.raises(PrefoptError, match=r"Did you mean 'pairs\.jsonl'"):
        load_examples(tmp_path / "pair.jsonl")
    with pytest.raises(PrefoptError, match="is a directory"):
        load_examples(tmp_path)
    with pytest.raises(PrefoptError, match="empty list"):
        load_examples([])
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "p"}\n' * 5000 + b'{"prompt": "\xe9"}')
    with pytest.raises(PrefoptError, match=r"latin\.jsonl:5001: not UTF-8"):
        load_examples(tmp_path / "latin.jsonl")


def big_rows(count=8000):
    for i in range(count):
        yield {"prompt": f"{i} " + "word " * 250, "completion": "c"}


def as_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in big_rows()))


def as_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(big_rows())


def as_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(big_rows())), path)


@pytest.mark.parametrize(("suffix", "write"), [("jsonl", as_jsonl), ("csv", as_csv), ("parquet", as_parquet)])
def test_files_are_read_piece_by_piece(tmp_path, suffix, write):
    """10 MB of text; what Python holds at any time is the rows of a Parquet batch at the most."""
    file = tmp_path / f"big.{suffix}"
    write(file)
    tracemalloc.start()
    examples = load_examples(file)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(examples) == 8000 and examples[7999].prompt.startswith("7999 word")
    assert most < (3e6 if suffix == "parquet" else 5e5)


def test_a_function_is_asked_row_by_row(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "alive = []\n"
        "class Row(dict):\n"
        "    def __init__(self, i):\n"
        "        super().__init__(prompt=f'p{i}')\n"
        "        alive.append(1)\n"
        "    def __del__(self):\n"
        "        alive.pop()\n"
        "def rows():\n"
        "    for i in range(50):\n"
        "        yield Row(i)\n"
        "        assert len(alive) <= 2\n"
    )
    assert len(load_examples(f"{path}:rows")) == 50


def test_line_endings_and_marks_of_other_systems(tmp_path):
    lines, table = tmp_path / "dos.jsonl", tmp_path / "mac.csv"
    lines.write_bytes(b'\xef\xbb\xbf{"prompt": "p\xe2\x80\xa8q"}\r\n\r\n{"prompt": "r"}\r\n')
    assert [(e.prompt, e.where) for e in load_examples(lines)] == [("p\u2028q", f"{lines}:1"), ("r", f"{lines}:3")]
    table.write_bytes(b"\xef\xbb\xbfprompt,completion\rp,c\rq\xe2\x80\xa8,d\r")
    assert [(e.prompt, e.where) for e in load_examples(table)] == [("p", f"{table}:2"), ("q\u2028", f"{table}:3")]


def test_rows_from_python():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    for one in (rows, pandas.DataFrame(rows), Dataset.from_list(rows), lambda: iter(rows)):
        assert [example.prompt for example in load_examples(Given(one))] == ["a", "c"]
    split = Given([{**row, "split": row["prompt"]} for row in rows])
    assert [example.prompt for example in load_examples(split, split="c")] == ["c"]
    half = {"prompt": "e", "completion": None}
    with pytest.raises(PrefoptError, match=r"3 rows of a list, \w+>: row 3"):
        load_examples(Given([*rows, half]))
    with pytest.raises(PrefoptError, match=r"is no list of dicts, pandas\.DataFrame, datasets\.Dataset or function"):
        load_examples(Given(3.5))
    with pytest.raises(PrefoptError, match=r"source\.data: this was .* Pass the object again"):
        load_examples("".join(Given(rows)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "yield {'prompt': 'a', 'completion': 'b'}\n    raise KeyError('boom')",
            "rows raised KeyError after row 1: 'boom'",
        ),
        ("raise OSError('no disk')", "rows raised OSError: no disk"),
        ("return {'prompt': 'a', 'completion': 'b'}", "rows returned one dict; it returns or yields rows"),
    ],
)
def test_a_function_that_fails_is_named(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"def rows():\n    {body}\n")
    with pytest.raises(PrefoptError, match=message):
        load_examples(f"{tmp_path}/mine.py:rows", {})


WHOLE = {"prompt": "p", "chosen": "pc", "rejected": "pr", "score_chosen": 5.0, "score_rejected": 1.0}


@pytest.mark.parametrize("of", ["jsonl", "null", "csv", "parquet", "frame", "hub"])
@pytest.mark.parametrize("missing", [("prompt",), ("score_chosen", "score_rejected")])
@pytest.mark.parametrize("turned", [False, True])
def test_a_row_that_lacks_what_the_others_have_is_named_with_what_it_lacks(tmp_path, of, missing, turned):
    """A pair without its prompt would be cut where its texts differ, and one without its scores have ±½ beside (5, 1)."""
    lacking = {name: value for name, value in WHOLE.items() if name not in missing}
    rows = [lacking, lacking, WHOLE] if turned else [WHOLE, WHOLE, lacking]
    emptied = [{name: row.get(name) for name in WHOLE} for row in rows]
    file = tmp_path / f"d.{'jsonl' if of == 'null' else of}"
    if of in ("jsonl", "null"):
        file.write_text("".join(f"{json.dumps(row)}\n" for row in (emptied if of == "null" else rows)))
    elif of == "csv":
        pandas.DataFrame(emptied).to_csv(file, index=False)
    elif of == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(emptied), file)
    data = {"frame": pandas.DataFrame, "hub": Dataset.from_list}.get(of)
    if of == "csv" and missing == ("prompt",):  # an empty cell is the empty text there
        assert [e.prompt for e in load_examples(file)] == ["" if "prompt" not in row else "p" for row in rows]
        return
    has, before = ("a", "none") if turned else ("no", "one")
    with pytest.raises(
        PrefoptError,
        match=rf"[: ]{4 if of == 'csv' else 3}: this row has {has} '{missing[0]}', and .* every row has {before}\.",
    ):
        load_examples(file if data is None else Given(data(emptied)))


@pytest.mark.parametrize(
    "missing", [("prompt",), ("score_chosen", "score_rejected"), tuple(sorted(WHOLE.keys() - {"chosen", "rejected"}))]
)
def test_rows_that_all_lack_the_same_are_of_one_form(tmp_path, missing):
    file = tmp_path / "d.jsonl"
    row = {name: value for name, value in WHOLE.items() if name not in missing}
    file.write_text(2 * f"{json.dumps(row)}\n")
    examples = load_examples(file)
    assert [e.scores for e in examples] == 2 * [(0.5, -0.5) if "score_chosen" in missing else (5.0, 1.0)]
    assert [e.prompt for e in examples] == 2 * ["p"]
