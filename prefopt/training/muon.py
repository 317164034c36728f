"""Muon for the matrices of a model, AdamW for everything else, as one optimiser."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def takes_muon(model: nn.Module) -> set[int]:
    """The ids of the weights that Muon trains: matrices within the layers, and so no embedding, head, bias or norm."""
    others = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            inside = {id(p) for p in module.base_model.parameters()}
            others += [p for p in module.parameters() if id(p) not in inside]
    apart = {id(p) for p in others} | {id(p) for name, p in model.named_parameters() if name.startswith("critic.")}
    return {id(p) for p in model.parameters() if p.requires_grad and p.ndim == 2} - apart


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) by `torch.optim.Muon`, which takes matrices alone, and AdamW for the other weights.

    Muon's steps are scaled to the size of AdamW's (`adjust_lr_fn="match_rms_adamw"`, Liu et al., arXiv 2502.16982), so that one
    learning rate serves both. Its orthogonalisation is in bf16, which rounds: updates of two splits of a batch differ by that.

    Args:
        groups: of weights; `muon` says of each whether it is of matrices for Muon.
        lr: of both, where a group has none of its own.
        weight_decay: of both, decoupled.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of Muon.
        nesterov: of Muon.
        ns_steps: of Muon's Newton–Schulz iteration.
        adjust_lr_fn: how Muon's step is scaled: "match_rms_adamw" or "original".
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
    ):
        matrices, others = (
            [{key: value for key, value in group.items() if key != "muon"} for group in groups if group["muon"] is kind]
            for kind in (True, False)
        )
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
            self.parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, **muon))  # type: ignore[arg-type]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps))
        # The very groups of the parts, so that a schedule that sets their learning rates sets those.
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both; a closure is not called."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Those of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
