"""Recipes of the previous version load, and say what their keys are called now."""

import pytest

from prefopt.recipe import read
from prefopt.recipe import renamed as names
from prefopt.support.errors import PrefoptError


def test_a_file_with_an_old_key_is_read_by_its_new_name(tmp_path, caplog):
    file = tmp_path / "old.yaml"
    file.write_text("source: {players: [mismatched]}\nobjective: [{name: KTO, source: {players: [greedy]}}]\n")
    tree = read(file)
    assert tree["source"] == {"writers": ["mismatched"]}
    assert tree["objective"][0]["source"] == {"writers": ["greedy"]}
    assert "`source.players` is now called `writers`" in caplog.text and str(file) in caplog.text


def test_an_override_with_an_old_key_sets_the_new_one(tmp_path, caplog):
    file = tmp_path / "new.yaml"
    file.write_text("source: {writers: [mismatched]}\n")
    assert read(file, ["source.players=[greedy]"])["source"] == {"writers": ["greedy"]}
    assert read(file, ["source={players: [greedy]}"])["source"] == {"writers": ["greedy"]}
    assert "is now called `writers`" in caplog.text


def test_the_same_word_elsewhere_keeps_its_name(tmp_path, caplog):
    file = tmp_path / "mine.yaml"
    file.write_text("objective: {name: Own, players: 2}\n")
    assert read(file)["objective"] == {"name": "Own", "players": 2}
    assert not caplog.text


def test_dotted_keys_as_studies_write_them(caplog):
    tree = {"arms": {"KTO": {"source.players": ["greedy"], "objective.beta": 0.1}}, 1: "one"}
    assert names.with_new_names(tree, "study.yaml") == {
        "arms": {"KTO": {"source.writers": ["greedy"], "objective.beta": 0.1}},
        1: "one",
    }
    assert "`arms.KTO.source.players` is now called `source.writers`" in caplog.text and "beta" not in caplog.text


def test_both_names_are_refused(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text("source: {players: [greedy], writers: [greedy]}\n")
    with pytest.raises(PrefoptError, match="`players` is now called `writers`, and both are given"):
        read(file)


def test_the_keys_of_this_version_that_had_another_name(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("source: {players: [greedy], rollouts: {rows: 3}}\nsamples: {rows: 4}\nevaluate: {rows: 5}\n")
    tree = read(file)
    assert tree["source"] == {"writers": ["greedy"], "rollouts": {"batch_size": 3}}
    assert tree["samples"] == {"batch_size": 4} and tree["evaluate"] == {"rows": 5}


def test_a_run_folder_is_read_without_a_warning(caplog):
    assert names.with_new_names({"source": {"players": []}}, where=None) == {"source": {"writers": []}}
    assert not caplog.text


def test_dotted_keys_and_numbers_keep_what_is_not_renamed(tmp_path, caplog):
    file = tmp_path / "study.yaml"
    file.write_text("arms: {A: {train.lr: 0.1, source.split: [1]}}\nlogit_bias: {3: 1.0}\n")
    tree = read(file)
    assert tree["arms"] == {"A": {"train.lr": 0.1, "source.split": [1]}} and tree["logit_bias"] == {3: 1.0}
    assert not caplog.text
