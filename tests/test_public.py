"""The public names: listed, there, and enough to put the README's picture together by hand."""

import json
from pathlib import Path

import pytest
from _tiny import tiny_model, tiny_pairs
from accelerate import Accelerator

import prefopt
from prefopt import recipe


def test_every_public_name_is_listed_and_there() -> None:
    assert set(prefopt.__all__) <= set(dir(prefopt))
    assert all(getattr(prefopt, name) is not None for name in prefopt.__all__)
    for name in (
        "Policy",
        "Scorer",
        "load_policy",
        "load_scorer",
        "Recorded",
        "Rollouts",
        "Trainer",
        "Term",
        "Evaluator",
    ):
        assert name in dir(prefopt)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = prefopt.Nothing  # type: ignore[attr-defined]


def test_the_picture_by_hand(tmp_path: Path) -> None:
    spec = recipe.Policy(model=(str(tiny_model(tmp_path / "lm")),))
    tokenizer = prefopt.load_tokenizer(spec)
    rows, _ = prefopt.tokenise(prefopt.load_examples(tiny_pairs(tmp_path / "pairs.jsonl")), tokenizer, 16, 16)
    policy, reference = (prefopt.load_policy(spec, tokenizer, seed=0) for _ in range(2))
    source = prefopt.Recorded(rows, 8, seed=0)
    settings, accelerator = recipe.Train(steps=3, batch_size=8, lr=1e-2), Accelerator(cpu=True)
    terms = [prefopt.Term(prefopt.load_objective("DPO", beta=0.3))]
    evaluator = prefopt.Evaluator(rows, recipe.Evaluate(prompts=0), accelerator, reference)
    losses = [
        step.metrics["loss"] for step in prefopt.Trainer(policy, terms, source, settings, 3, accelerator, reference)
    ]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses[-1] < losses[0]
    assert evaluator(policy).estimates()["accuracy"].value > 0.5, json.dumps(losses)
