"""Settings in a model's folder that no model can have are named with the folder before anything is trained."""

import json

import pytest
from _tiny import tiny_model, tiny_pairs, tiny_recipe

from prefopt import PrefoptError, load_recipe
from prefopt.runs.dry_run import dry_run
from prefopt.runs.run import run

DAMAGE = {
    "names that are numbers": ("config.json", {"architectures": [5]}),
    "fewer than no layers": ("config.json", {"num_hidden_layers": -1}),
    "no heads": ("config.json", {"num_attention_heads": 0}),
    "width that is a text": ("config.json", {"hidden_size": "wide"}),
    "type of no model": ("config.json", {"model_type": "no-such-type"}),
    "length that is a table": ("tokenizer_config.json", {"model_max_length": {"a": 1}}),
    "class of no tokenizer": ("tokenizer_config.json", {"tokenizer_class": 5}),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("start", [dry_run, lambda settings: run(settings)], ids=["dry run", "run"])
def test_what_no_model_can_have_is_refused_with_the_folder(tmp_path, start, how):
    file, change = DAMAGE[how]
    folder = tiny_model(tmp_path / "lm")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    settings = load_recipe(tiny_recipe(tmp_path, folder, tiny_pairs(tmp_path / "pairs.jsonl")))
    with pytest.raises(PrefoptError, match=rf"cannot load the (model|tokenizer) {folder}"):
        start(settings)
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize("end", ["x", [3, "x"], 10**400, {}])
def test_end_tokens_that_are_none_are_refused_before_anything_is_trained(tmp_path, end):
    folder = tiny_model(tmp_path / "lm")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    settings = load_recipe(tiny_recipe(tmp_path, folder, tiny_pairs(tmp_path / "pairs.jsonl")))
    with pytest.raises(
        PrefoptError, match=rf"{folder}: eos_token_id in generation_config.json must be the number of a token"
    ):
        run(settings)
    assert not list(tmp_path.glob("runs/*/*"))
