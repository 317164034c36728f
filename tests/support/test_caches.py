"""`prefopt cache`: what is listed, verified and cleared, as people see it."""

import numpy as np
import pytest
from rich.console import Console
from test_disk_store import keys_of, put

from prefopt import Needs
from prefopt.cli import consoles, main
from prefopt.policy import load_policy, make_reference
from prefopt.recipe import Policy, Reference
from prefopt.runs.results import size
from prefopt.support.caches import cache_folder, clear, usage, verified
from prefopt.support.disk_store import Store, segments


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(consoles, "out", Console(highlight=False, width=150))


@pytest.fixture
def logps():
    """A segment of three entries, and one of one."""
    folder = cache_folder("logps") / "model"
    for numbers in ([1, 2, 3], [4]):
        put(Store(folder, 10**9), numbers)
    return folder


@pytest.fixture
def embeddings():
    """Seven vectors of one encoder."""
    folder = cache_folder("embeddings") / "encoder"
    Store(folder, 10**9).put(keys_of(range(7)), [np.full(3, n, np.float32) for n in range(7)])
    return folder


def printed(capsys, *arguments):
    main(["cache", *arguments])
    return capsys.readouterr().out


def test_nothing(capsys):
    assert printed(capsys) == "nothing is kept\n"
    assert printed(capsys, "clear", "judges", "--yes") == "nothing is kept of the kind judges\n"


def test_what_a_reference_keeps_is_listed_by_its_name(capsys, lm_folder, tokenizer, make_batch):
    spec = Policy(model=str(lm_folder))
    policy = load_policy(spec, tokenizer, seed=0)
    make_reference(policy, Reference(), spec)(make_batch(3), Needs(reference=True))
    lines = printed(capsys).splitlines()
    assert lines[0].split() == ["kind", "entries", "size", "last", "used", "of"]
    assert lines[1].startswith("logps") and lines[1].split()[1] == "6"
    assert f"{lm_folder.name} (" in lines[1] and "float32, cpu, autocast None" in lines[1]


def test_kinds_are_listed_apart(logps, embeddings):
    found = {one.kind: one for one in usage()}
    assert (found["logps"].entries, found["logps"].files, found["logps"].torn) == (4, 2, 0)
    assert (found["embeddings"].entries, found["embeddings"].files) == (7, 1)
    assert found["logps"].bytes == sum(file.stat().st_size for file in segments(logps))
    assert [one.kind for one in usage("embeddings")] == ["embeddings"]


def test_damage_is_found_and_told(logps, embeddings, capsys):
    assert [one.damaged for one in verified()] == [0, 0]
    file = max(segments(logps), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with file.open("ab") as opened:
        opened.write(b"prefopt1 and then killed")
    (vectors,) = segments(embeddings)
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    assert [(one.damaged, one.torn) for one in usage("logps")] == [(0, 24)]  # values are not read
    assert [(one.entries, one.damaged, one.torn) for one in verified()] == [(4, 1, 24), (7, 1, 0)]
    with pytest.raises(SystemExit) as caught:
        main(["cache", "verify"])
    assert caught.value.code == 1
    shown = capsys.readouterr().out
    assert "1 damaged, 24 B half-written" in shown and "2 damaged: they are never used" in shown
    found, _ = Store(logps, 10**9).get(keys_of([1, 2, 3, 4]))
    assert found.tolist() == [True, True, False, True]  # as verify says


def test_nothing_is_deleted_without_yes(logps, embeddings, capsys):
    with pytest.raises(SystemExit):
        main(["cache", "clear", "logps"])
    assert "add --yes" in capsys.readouterr().err
    assert len(list(usage())) == 2
    bytes_kept = sum(one.bytes for one in usage("logps"))
    assert f"deleted {size(bytes_kept)}" in printed(capsys, "clear", "logps", "--yes")
    assert [one.kind for one in usage()] == ["embeddings"]
    clear()
    assert not list(usage())


def test_an_unknown_kind_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["cache", "list", "logp"])
    assert "Did you mean 'logps'?" in capsys.readouterr().err


def test_sizes():
    assert [size(n) for n in (0, 999, 1000, 123_456, 10**6, 2_340_000_000, 10**13)] == [
        "0 B",
        "999 B",
        "1 kB",
        "123 kB",
        "1 MB",
        "2.34 GB",
        "10 TB",
    ]


def test_files_of_an_earlier_version_are_listed_and_cleared(embeddings, capsys):
    """Until embeddings went to the shared store there was one safetensors file for each set of prompts."""
    old = cache_folder("embeddings") / "0123abcd.safetensors"
    old.write_bytes(b"whatever is in it")
    assert [(one.entries, one.files, one.damaged) for one in verified("embeddings")] == [(1, 1, 0), (7, 1, 0)]
    printed(capsys, "clear", "embeddings", "--yes")
    assert not old.exists()


def test_a_file_in_the_place_of_all_caches_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as ended:
        main(["cache", "list"])
    assert ended.value.code == 2
    assert f"{tmp_path}/file, where caches go, is a file: name a folder in PREFOPT_CACHE" in capsys.readouterr().err
