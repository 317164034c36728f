"""TRL's own KTO, CPO and ORPO loss code on given log-probs, or on given logits where it takes its likelihood from them."""

from collections import defaultdict
from types import SimpleNamespace

import torch


def trl_kto(batch, policy, reference, **settings):
    """TRL's own KTO loss code on these log-probs; it sums over the batch, and returns the mean."""
    from trl.trainer.kto_trainer import KTOTrainer

    class Trainer(KTOTrainer):
        def __init__(self):
            defaults = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "loss_type": "kto"}
            vars(self).update(defaults | settings)
            self.precompute_ref_logps = self.aux_loss_enabled = False
            self.calculate_KL, self._tp_size, self._total_train_tokens = True, 1, 0
            self._metrics = {"train": defaultdict(list)}
            self.args = SimpleNamespace(gradient_checkpointing_kwargs=None)
            self.accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
            self.model, self.ref_model = model(policy), model(reference)

        def _compute_kl_logps(self, model, batch):
            return model.mismatched

    def model(outputs):
        logps = outputs.logps.masked_fill(~outputs.mask, 0)

        class Model(torch.nn.Module):
            is_gradient_checkpointing = False
            mismatched = logps[:, 1].sum(-1)

            def forward(self, **_):
                nothing = torch.zeros_like(logps[:, 0])
                return SimpleNamespace(log_probs=logps[:, 0], entropy=nothing, mean_logits=nothing)

        return Model()

    completions = torch.nn.functional.pad(policy.mask[:, 0].long(), (1, 0))
    inputs = {
        "input_ids": torch.ones_like(completions),
        "attention_mask": torch.ones_like(completions),
        "completion_mask": completions,
        "label": batch.scores[:, 0] > 0,
    }
    trainer = Trainer()
    return trainer._compute_loss(trainer.model, inputs, return_outputs=False)


def trl_cpo(logps, **settings):
    """The mean of `CPOTrainer.cpo_loss` on [B, 2] log-probs, whatever they are of: its loss but for the likelihood."""
    return _cpo(settings).cpo_loss(logps[:, 0], logps[:, 1])[0].mean()


def trl_orpo(logps, beta):
    """The mean of `ORPOTrainer.odds_ratio_loss`, in float32: what TRL subtracts from the likelihood."""
    return _orpo({"beta": beta}).odds_ratio_loss(logps[:, 0], logps[:, 1])[0].mean()


def trl_whole(trainer, logits, ids, prompt, lengths, **settings):
    """The scalar loss of `get_batch_loss_metrics`, likelihood and all.

    Args:
        trainer: "cpo" or "orpo".
        logits: [2B, L, V], all chosen rows first.
        ids: [2B, L], tokens.
        prompt: tokens of each prompt.
        lengths: [2B], tokens of each completion; padding follows.
        settings: attributes of the trainer.
    """
    place, rows = torch.arange(ids.shape[1]), len(ids) // 2
    attention = (place < prompt + lengths[:, None]).long()
    labels = torch.where((place >= prompt) & (attention == 1), ids, -100)
    fields = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    batch = {f"chosen_{name}": value[:rows] for name, value in fields.items()}
    batch |= {f"rejected_{name}": value[rows:] for name, value in fields.items()}
    made = {"cpo": _cpo, "orpo": _orpo}[trainer](settings)

    def model(*_, **__):
        return SimpleNamespace(logits=logits)

    return made.get_batch_loss_metrics(model, batch)[0]


def _cpo(settings):
    from trl.experimental.cpo import CPOTrainer

    defaults = {"label_smoothing": 0.0, "alpha": 0.0, "cpo_alpha": 1.0, "loss_type": "sigmoid", "pad_token_id": 0}
    return _bare(CPOTrainer, defaults | settings)


def _orpo(settings):
    from trl.experimental.orpo import ORPOTrainer

    return _bare(ORPOTrainer, {"padding_value": 0} | settings)


def _bare(cls, settings):
    trainer = cls.__new__(cls)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    vars(trainer).update(
        {"accelerator": accelerator, "is_encoder_decoder": False, "aux_loss_enabled": False} | settings
    )
    return trainer
