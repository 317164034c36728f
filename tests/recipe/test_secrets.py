"""No secret gets into a recipe, and so into a run folder: neither from the environment nor typed."""

import pytest
import yaml

from prefopt import PrefoptError, recipe
from prefopt.recipe.secrets import refuse_secrets, refuse_variable

HARMLESS = "not-a-real-one-000"


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "HF_TOKEN", "MY_SECRET", "DB_PASSWORD", "API_KEY_2", "mykey", "AWS_SECRET_ACCESS_KEY", "JUDGE_KEY_OLD"],
)  # fmt: skip
def test_a_variable_that_holds_a_secret_is_refused_with_the_way(name, monkeypatch, tmp_path):
    monkeypatch.setenv(name, HARMLESS)
    file = tmp_path / "r.yaml"
    file.write_text(f"policy: {{model: x}}\nvariables: {{a: '${{env:{name}}}'}}\nname: '${{a}}'\n")
    with pytest.raises(
        PrefoptError, match=rf"\$\{{env:{name}\}} would put a secret .*`key_env`.*key_env: {name}"
    ) as error:
        recipe.load_recipe(file)
    assert HARMLESS not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATA", "/data"),
        ("TOKENIZER", "x"),
        ("MAX_TOKENS", "12"),
        ("KEY_FILE", "/k"),
        ("MAX_TOKEN", "12"),
        ("PWD", "/"),
    ],
)
def test_other_variables_are_read(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert recipe.interpolated({"name": f"${{env:{name}}}"})["name"] == value


def test_a_variable_with_an_innocent_name_and_a_key_in_it_is_refused():
    with pytest.raises(PrefoptError, match="would put a secret"):
        refuse_variable("JUDGE", "sk-" + "0" * 20)


TYPED = ["sk-" + "a1" * 12, "hf_" + "a1" * 12, "Bearer " + "a1" * 12, "https://me:pass@host/v1", "ghp_" + "a1" * 12]


@pytest.mark.parametrize("text", TYPED, ids=lambda text: text[:5])
@pytest.mark.parametrize("key", ["feedback.server.model", "variables.x", "train.callbacks"])
def test_a_secret_that_is_typed_is_refused_at_its_key_and_not_repeated(text, key, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"policy": {"model": "x"}}))
    with pytest.raises(PrefoptError, match=f"r.yaml: `{key}` holds a secret .*key_env") as error:
        recipe.load_recipe(file, [f"{key}={text}"])
    assert text not in str(error.value)


@pytest.mark.parametrize("field", ["api_key", "Authorization", "password", "x-api-key", "openai_api_key", "hf_token"])
def test_a_field_for_a_secret_is_refused_whatever_it_holds(field):
    with pytest.raises(PrefoptError, match=f"s: `server.extra.{field}` holds a secret"):
        refuse_secrets({"server": {"extra": {field: "abc"}}}, "s")


def test_ordinary_recipes_hold_no_secret():
    words = {"key_env": "OPENAI_API_KEY", "data": ["https://host/a:b@c", "risk-averse-and-other-words"], "password": ""}
    refuse_secrets(words | {"rubric": {"question": "a token, a key, sk-, hf_x: {{ completion }}"}, "x": 3}, "r")


def test_rows_given_from_python_may_say_what_they_like():
    refuse_secrets({"source": {"data": [{"prompt": TYPED[0], "completion": TYPED[1]}]}}, "r")


def test_a_study_and_a_rubric_hold_none_either(tmp_path):
    from prefopt.feedback.judges import load_rubric

    file = tmp_path / "rubric.yaml"
    file.write_text(yaml.safe_dump({"question": f"{TYPED[0]} {{{{ completion }}}}"}))
    with pytest.raises(PrefoptError, match=r"rubric.yaml: `question` holds a secret"):
        load_rubric(str(file))
