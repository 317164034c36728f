"""Against TRL's own trainer, on the same model and the same batches in the same order."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerFast
from updates import VOCABULARY, Batches, tiny_llama

from prefopt import recipe
from prefopt.data import collate, parse, tokenise
from prefopt.objectives import DPO
from prefopt.objectives.terms import Term
from prefopt.policy import Policy, make_reference
from prefopt.training.loop import Trainer

STEPS, ROWS = 10, 4

# TRL 1.16 sets options that transformers 5.23 has renamed, and tokenises in ways that datasets warns of.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY - 3)} | {"<pad>": 47, "<eos>": 48, "<unk>": 49}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def preferences() -> list[dict[str, str]]:
    draw = torch.Generator().manual_seed(0)

    def words() -> str:
        length = int(torch.randint(1, 9, (), generator=draw))
        return " ".join(f"w{int(torch.randint(0, 47, (), generator=draw))}" for _ in range(length))

    rows = [
        {"prompt": words(), "chosen": " " + words() + " <eos>", "rejected": " " + words() + " <eos>"}
        for _ in range(2 * ROWS)
    ]
    return rows * (STEPS // 2)  # each batch comes back, so that the loss falls


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    """TRL's loss at each step, and its gradients at the first."""
    from trl import DPOConfig, DPOTrainer

    gradients: dict[str, torch.Tensor] = {}

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *arguments: Any, **more: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **more: Any) -> torch.Tensor:
            loss = super().training_step(*arguments, **more)
            if not gradients:
                gradients.update({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
            return loss

    config = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    model, reference = (tiny_llama(torch.float32) for _ in range(2))
    rows = Dataset.from_list(preferences())
    trainer = InOrder(
        model=model, ref_model=reference, args=config, train_dataset=rows, processing_class=word_tokenizer()
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], gradients


def ours() -> Trainer:
    tokenised, _ = tokenise([parse(row) for row in preferences()], word_tokenizer())
    batches = [collate(tokenised[start : start + ROWS]) for start in range(0, STEPS * ROWS, ROWS)]
    policy = Policy(tiny_llama(torch.float32), word_tokenizer())
    spec = recipe.Train(steps=STEPS, batch_size=ROWS, lr=5e-3, schedule="constant", warmup=0, micro_batch_size=ROWS)
    reference = make_reference(policy, recipe.Reference(), recipe.Policy(model=("none",)))
    return Trainer(policy, [Term(DPO(beta=0.1))], Batches(batches), spec, STEPS, Accelerator(cpu=True), reference)


def test_losses_equal_trl_over_ten_steps(theirs: tuple[list[float], Any]) -> None:
    losses = [step.metrics["loss"] for step in ours()]
    assert len(losses) == STEPS
    assert losses == pytest.approx(theirs[0], abs=1e-4)
    assert abs(losses[-1] - losses[0]) > 0.05  # there was something to get wrong


def test_first_gradients_equal_trl(
    theirs: tuple[Any, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ours()
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({n: p.grad.clone() for n, p in trainer.model.model.named_parameters()})

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", keep)
    next(iter(trainer))
    assert found.keys() == theirs[1].keys()
    for name, expected in theirs[1].items():
        assert (found[name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_tokens_equal_trl(tmp_path: Path) -> None:
    """The same ids as TRL's own tokenisation of the same rows; one EOS, though the text has one already."""
    from trl.data_utils import common_prefix_length

    tokenizer = word_tokenizer()
    row = preferences()[0]
    tokenised, _ = tokenise([parse(row)], tokenizer)
    joint = tokenizer(row["prompt"] + row["chosen"])["input_ids"]
    cut = common_prefix_length(tokenizer(row["prompt"])["input_ids"], joint)
    assert list(tokenised[0].prompt_ids) == joint[:cut]
    assert list(tokenised[0].completion_ids[0]) == joint[cut:]
    assert json.dumps(joint).count("48") == 1
