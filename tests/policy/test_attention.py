"""Attention by segments against one big softmax over what each token may see."""

import pytest
import torch
from torch import nn

from prefopt.policy.rows.attention import Segments, segment_attention

SEGMENTS = Segments([(5, [3, 2]), (1, [4]), (6, [])])


def seen(window: int | None) -> torch.Tensor:
    """[T, T], token by token from the definition."""
    known: list[tuple[int, int, int]] = []  # group, branch, position
    for group, (prompt, completions) in enumerate(SEGMENTS.groups):
        known += [(group, 0, t) for t in range(prompt)]
        known += [(group, k, prompt + t) for k, size in enumerate(completions, 1) for t in range(size)]
    return torch.tensor(
        [
            [g == h and b in (0, a) and q >= p and (window is None or q - p < window) for h, b, p in known]
            for g, a, q in known
        ]
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 100])
def test_the_same_as_one_softmax(window, kv_heads):
    torch.manual_seed(0)
    heads = torch.randn(4 + 2 * kv_heads, sum(SEGMENTS.sizes), 8, dtype=torch.float64, requires_grad=True)
    query, key, value = heads[None].split([4, kv_heads, kv_heads], 1)
    found, _ = segment_attention(
        nn.Module(), query, key, value, None, segments=SEGMENTS, scaling=0.3, sliding_window=window
    )
    keys, values = (part.repeat_interleave(4 // kv_heads, 1) for part in (key, value))
    scores = (query @ keys.mT * 0.3).masked_fill(~seen(window), -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weights).sum(), heads, retain_graph=True)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_what_it_does_not_know_is_refused():
    heads = torch.zeros(1, 1, sum(SEGMENTS.sizes), 8)
    with pytest.raises(ValueError, match="its attention has softcap"):
        segment_attention(nn.Module(), heads, heads, heads, None, segments=SEGMENTS, softcap=50.0)
