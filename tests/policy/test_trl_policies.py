"""Policies that TRL's trainers saved are read as they were trained: whole, and as an adapter."""

import pytest
import torch
from _tiny import tiny_model
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from prefopt import Batch, Needs
from prefopt.policy import load_policy, load_tokenizer
from prefopt.recipe import Policy as Spec

ROWS = [{"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 2} w1", "rejected": f" w{i + 3}"} for i in range(8)]


# TRL 1.16 warns of what transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules="all-linear")], ids=["whole", "LoRA"])
def test_a_policy_of_trls_dpo_trainer_says_what_it_said_there(adapter, tmp_path):
    trl = pytest.importorskip("trl", "1.16")
    folder = tiny_model(tmp_path / "lm")
    config = trl.DPOConfig(
        str(tmp_path / "out"),
        max_steps=3,
        learning_rate=0.02,
        report_to="none",
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = trl.DPOTrainer(
        str(folder),
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=adapter,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    row = torch.tensor([[3, 17, 5, 40, 8]])
    with torch.no_grad():
        theirs = trainer.model.eval()(input_ids=row).logits[0].log_softmax(-1)
    expected = theirs[1:-1].gather(-1, row[0, 2:, None])[:, 0]
    assert (tmp_path / "saved" / "adapter_config.json").is_file() == (adapter is not None)

    def said(name):
        spec = Spec(model=str(name))
        batch = Batch(((3, 17),), row[:, None, 2:], torch.ones(1, 1, 3, dtype=torch.bool))
        with torch.no_grad():
            return load_policy(spec, load_tokenizer(spec), seed=0).eval()(batch, Needs()).logps[0, 0]

    torch.testing.assert_close(said(tmp_path / "saved"), expected, rtol=1e-5, atol=1e-5)
    assert (said(folder) - expected).abs().max() > 1e-3, "nothing was trained"
