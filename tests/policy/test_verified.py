"""What was compared once is known to later processes, and not to those with another model, code or version."""

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from prefopt.policy.rows import verified

CPU = torch.device("cpu")
FILE = verified._file


class Own(type(AutoModel.from_config(LlamaConfig(num_hidden_layers=0, hidden_size=4, num_attention_heads=1)))):
    """A user's own class."""


@pytest.fixture
def backbone(tiny):
    return AutoModel.from_config(LlamaConfig(**tiny))


@pytest.fixture(autouse=True)
def on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    monkeypatch.setattr(verified, "_file", FILE)
    return tmp_path / "layouts"


def in_a_new_process(monkeypatch) -> None:
    monkeypatch.setattr(verified, "LONGEST", {})


def test_it_is_kept(backbone, monkeypatch):
    kind = verified.key("packed", backbone, CPU)
    assert verified.longest(kind) == 0
    verified.remember(kind, 12)
    in_a_new_process(monkeypatch)
    assert verified.longest(kind) == 12
    assert verified.longest(verified.key("masked", backbone, CPU)) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert verified.longest(verified.key("packed", backbone, CPU)) == 0


def test_other_code_is_compared_anew(backbone, monkeypatch):
    kind = verified.key("packed", backbone, CPU)
    verified.remember(kind, 12)
    in_a_new_process(monkeypatch)
    monkeypatch.setattr(verified, "_code", lambda: ("2.99.0",))
    assert verified.longest(kind) == 0


def test_what_is_not_exact_is_not_kept(backbone, monkeypatch):
    kind = verified.key("shared prompts", backbone, CPU)
    verified.remember(kind, -1)
    assert verified.longest(kind) == -1
    in_a_new_process(monkeypatch)
    assert verified.longest(kind) == 0


def test_a_users_own_class_is_not_kept(tiny, monkeypatch, on_disk):
    kind = verified.key("packed", Own(LlamaConfig(**tiny)), CPU)
    verified.remember(kind, 12)
    assert verified.longest(kind) == 12
    assert not on_disk.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tokens": null}'])
def test_a_damaged_file_is_no_obstacle(content, backbone, monkeypatch, on_disk):
    kind = verified.key("packed", backbone, CPU)
    verified.remember(kind, 12)
    (file,) = on_disk.iterdir()
    file.write_text(content)
    in_a_new_process(monkeypatch)
    assert verified.longest(kind) == 0
