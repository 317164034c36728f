"""Values for actor–critic methods: the expected return from each token of a completion on."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.policy.rows.prefix_sharing import PrefixSharing
from prefopt.types import Batch


class ValueHead(nn.Module):
    """V(x, y_<t) as a linear function of the hidden state that predicts token t; 0 everywhere at the start.

    In fp32 (fp64 for a model in fp64) whatever the model's dtype. Zero at the start, so that the first advantages are the
    rewards themselves (Huang et al., "The N Implementation Details of RLHF with PPO", 2023, detail 19).

    Args:
        width: H, of the hidden states.
        dtype: of the model.
    """

    def __init__(self, width: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.linear = nn.Linear(width, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: Batch, hidden: Tensor) -> Tensor:
        """[M] values, from the policy's own hidden states [M, H]."""
        with torch.autocast(hidden.device.type, enabled=False):
            # Not `[:, 0]`, which is a view: sharded modules return tensors of their own.
            return self.linear(hidden.to(self.linear.weight.dtype)).sum(-1)


class Critic(nn.Module):
    """Values from a separate model, which reads the same batch as the policy.

    Args:
        backbone: a decoder without its LM head.
    """

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone
        self._prefix_sharing = PrefixSharing()
        self.head = ValueHead(backbone.config.get_text_config().hidden_size, backbone.dtype)

    def forward(self, batch: Batch, hidden: Tensor) -> Tensor:
        """[M] values; the policy's hidden states are not used."""
        return self.head(batch, self._prefix_sharing(self.backbone, batch))
