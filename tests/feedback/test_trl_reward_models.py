"""Reward models of TRL's own trainer: prefopt gives the scores that TRL's model gives to TRL's batches."""

import pytest
import torch
from _chatml import chatml_llama, chatml_tokenizer
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM

from prefopt.feedback import RewardModel

TEXTS = [("two and two:", " four", " five, I think"), ("say yes:", " yes", " no"), ("a", " b c d e f", " z")]


def rows(chat):
    if not chat:
        return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS]

    def turn(role, content):
        return [{"role": role, "content": content}]

    return [
        {"prompt": turn("user", p), "chosen": turn("assistant", c), "rejected": turn("assistant", r)}
        for p, c, r in TEXTS
    ]


# TRL 1.16 warns of what transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("pad", ["<pad>", "<|im_end|>", None], ids=["own padding", "padding is EOS", "no padding"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "text"])
@pytest.mark.parametrize("adapter", [None, "SEQ_CLS", "no task"])
def test_scores_are_those_of_trls_own_forward_pass(tmp_path, adapter, chat, pad):
    trl = pytest.importorskip("trl", "1.16")
    tokenizer = chatml_tokenizer(pad)
    chatml_llama(tokenizer, LlamaForCausalLM).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    task = {"task_type": "SEQ_CLS"} if adapter == "SEQ_CLS" else {}
    trainer = trl.RewardTrainer(
        str(tmp_path / "lm"),
        trl.RewardConfig(
            str(tmp_path / "out"),
            max_steps=3,
            learning_rate=0.02,
            report_to="none",
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_list(rows(chat)),
        peft_config=adapter and LoraConfig(r=4, target_modules="all-linear", modules_to_save=["score"], **task),
    )
    trainer.train()
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    given = {name: batch[name].to(trainer.model.device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        theirs = trainer.model.eval()(**given).logits[:, 0]
    trainer.save_model(str(tmp_path / "reward"))

    own = rows(chat)
    answers = [[r[k][0]["content"] if chat else r[k] for k in ("chosen", "rejected")] for r in own]
    scores = RewardModel(str(tmp_path / "reward"))([r["prompt"] for r in own], answers, [{}] * len(own)).scores
    torch.testing.assert_close(scores.T.flatten(), theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 1e-3
