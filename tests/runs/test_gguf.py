"""GGUF is written by llama.cpp's converter: found, or refused before anything is written; what it says is passed on."""

import os

import pytest
from _tiny import tiny_model

import prefopt
from prefopt.runs.gguf import SCRIPT, find_converter, write_gguf
from prefopt.support.errors import PrefoptError


def test_without_a_converter_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        PrefoptError, match=r"convert_hf_to_gguf\.py, which is not here.*ggml-org/llama\.cpp.*LLAMA_CPP"
    ):
        prefopt.export(tiny_model(tmp_path / "model"), tmp_path / "out", gguf="f16")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(PrefoptError, match=r"there is no convert_hf_to_gguf\.py in it"):
        find_converter()
    script = tmp_path / SCRIPT
    script.write_text("")
    assert find_converter() == script
    monkeypatch.delenv("LLAMA_CPP")
    script.chmod(0o755)
    assert find_converter() == script


def test_a_converter_that_fails_leaves_the_weights_and_says_why(tmp_path, monkeypatch):
    (tmp_path / SCRIPT).write_text(
        "import sys\nprint('half', file=open(sys.argv[3], 'w'))\nsys.exit('no such architecture')\n"
    )
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_PYTHON", raising=False)
    with pytest.raises(
        PrefoptError, match=r"no GGUF of them: no such architecture\. By hand it says more: .*model-f16\.gguf"
    ):
        prefopt.export(tiny_model(tmp_path / "model"), tmp_path / "out", gguf="f16")
    assert (tmp_path / "out" / "model.safetensors").is_file() and not list((tmp_path / "out").glob("*gguf*"))


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no clone of llama.cpp")
def test_the_weights_are_those_of_the_model(tmp_path):
    gguf = pytest.importorskip("gguf")
    spm = pytest.importorskip("sentencepiece")
    from transformers import LlamaConfig, LlamaForCausalLM

    (tmp_path / "words.txt").write_text("\n".join(f"word{i} and {i * 7} more of them" for i in range(400)))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=120, minloglevel=2
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=120, **sizes))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "tokenizer.model").rename(tmp_path / "model" / "tokenizer.model")
    file = write_gguf(find_converter(), tmp_path / "model", "f32")
    assert file == tmp_path / "model" / "model-f32.gguf"
    tensors = {one.name: one.data for one in gguf.GGUFReader(file).tensors}
    for name, layer in (("token_embd", model.model.embed_tokens), ("blk.1.ffn_up", model.model.layers[1].mlp.up_proj)):
        assert (tensors[f"{name}.weight"] == layer.weight.detach().numpy()).all()
