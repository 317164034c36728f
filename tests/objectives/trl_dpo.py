"""TRL's own DPO loss code, run on given log-probs: the oracle of several test files here."""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import torch

from prefopt import Batch, Outputs


def trl_dpo(loss_type, policy, reference=None, *, beta=0.1, discopop_tau=0.05, **config):
    """The scalar loss of `DPOTrainer._compute_loss`, with gradient to `policy.logps`.

    Args:
        loss_type: a loss type of TRL, or several with `loss_weights`.
        policy: [B, 2, T], chosen first; `statistics["log_sum_squares"]` is read when `use_weighting`.
        reference: its outputs; None stands for log-probs of 0, for losses that do not read them.
        beta: β, or what TRL uses it for.
        discopop_tau: the τ of "discopop".
        config: other attributes of the trainer: label_smoothing, ld_alpha, f_divergence_type, f_alpha_divergence_coef,
            use_weighting, loss_weights.
    """
    with warnings.catch_warnings():  # TRL 1.16 sets options that transformers 5.23 has renamed
        warnings.simplefilter("ignore")
        from trl.trainer.dpo_trainer import DPOTrainer  # late, since it takes seconds

    types = [loss_type] if isinstance(loss_type, str) else list(loss_type)
    settings = {
        "loss_types": types,
        "loss_weights": [1.0] * len(types),
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
    }
    unknown = set(config) - set(settings)
    assert not unknown, f"not a setting of this helper: {unknown}"

    def same(tensor):
        return tensor

    trainer = DPOTrainer.__new__(DPOTrainer)
    vars(trainer).update(settings | config)
    trainer.beta = beta
    trainer.args = SimpleNamespace(discopop_tau=discopop_tau, gradient_checkpointing_kwargs=None)
    trainer.model = torch.nn.Module()
    trainer.model.is_gradient_checkpointing = False
    trainer.ref_model = _model(reference or Outputs(policy.mask, torch.zeros_like(policy.logps.detach())))
    trainer.precompute_ref_logps = trainer.aux_loss_enabled = False
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"train": defaultdict(list)}, 0, 1
    completions = torch.nn.functional.pad(_flat(policy.mask).long(), (1, 0))  # one prompt token
    inputs = {
        "input_ids": torch.ones_like(completions),
        "attention_mask": torch.ones_like(completions),
        "completion_mask": completions,
    }
    default = torch.get_default_dtype()
    torch.set_default_dtype(policy.logps.dtype)  # TRL makes a tensor of label_smoothing
    try:
        return trainer._compute_loss(_model(policy), inputs, return_outputs=False)
    finally:
        torch.set_default_dtype(default)


def random_pairs(prompts=5, tokens=6, seed=0, dtype=torch.float64, scale=1.0):
    """A batch of pairs, the policy's outputs (leaves with gradient) and the reference's: lengths differ, masks have holes."""
    draw = torch.Generator().manual_seed(seed)
    shape = (prompts, 2, tokens)
    mask = torch.arange(tokens) < torch.randint(2, tokens + 1, (prompts, 2, 1), generator=draw)
    mask[:, :, 1] &= torch.rand((prompts, 2), generator=draw) < 0.5
    batch = Batch(((1, 2),) * prompts, torch.randint(3, 9, shape, generator=draw) * mask, mask)

    def outputs():
        logps = -scale * torch.rand(shape, generator=draw, dtype=torch.float64) * mask
        squares = -2 * torch.rand(shape, generator=draw, dtype=torch.float64) * mask
        return Outputs(mask, logps.to(dtype), statistics={"log_sum_squares": squares.to(dtype)})

    policy, reference = outputs(), outputs()
    policy.logps.requires_grad_()
    return batch, policy, reference


def assert_same(ours, theirs, policy, rtol=1e-10):
    """Two scalar losses of `policy`, and their gradients with respect to `policy.logps`, agree."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=rtol)
    gradients = [torch.autograd.grad(loss, policy.logps, retain_graph=True)[0] for loss in (ours, theirs)]
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=rtol, atol=rtol * gradients[1].abs().max().item())


def _flat(tensor):
    """[B, 2, T] to [2B, T], all chosen first: TRL's layout."""
    return tensor.transpose(0, 1).flatten(0, 1)


def _model(outputs):
    """A forward pass that says `outputs`; what TRL only logs is 0."""

    def forward(**_):
        logps = _flat(outputs.logps.masked_fill(~outputs.mask, 0))  # as it is where labels are −100
        squares = outputs.statistics.get("log_sum_squares")
        nothing = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=logps,
            log_sum_sq_probs=nothing if squares is None else _flat(squares),
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )

    return forward
