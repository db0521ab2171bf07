"""The kernel for rows end to end against single rows in fp32."""

import pytest
import torch
from torch import Tensor, nn

from ring_ray.engines import attention
from ring_ray.engines.attention import varlen_attention

LENGTHS = [1, 300, 17, 64]
# Relative: bfloat16 keeps 8 bits of the mantissa.
BF16_BOUND = 0.02


@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(4, 4, 64), (8, 2, 128)])
def test_outputs_and_gradients_are_those_of_single_rows(
    monkeypatch: pytest.MonkeyPatch, heads: int, groups: int, head_dim: int
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [
        torch.randn(1, sum(LENGTHS), count, head_dim, device="cuda", generator=generator).bfloat16()
        for count in (heads, groups, groups)
    ]
    toward = torch.randn(1, sum(LENGTHS), heads, head_dim, device="cuda", generator=generator)

    def attend(dtype: torch.dtype) -> list[Tensor]:
        copies = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        cu_seqlens = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0, dtype=torch.int32)
        ends = {"cu_seq_lens_q": cu_seqlens, "max_length_q": max(LENGTHS)}
        query, key, value = (tensor.transpose(1, 2) for tensor in copies)
        found, _ = varlen_attention(nn.Module(), query, key, value, None, scaling=head_dim**-0.5, **ends)
        return [found, *torch.autograd.grad((found * toward).sum(), copies)]

    expected = attend(torch.float32)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", None)  # only the kernel is left
    for ours, theirs in zip(attend(torch.bfloat16), expected, strict=True):
        assert (ours.float() - theirs).norm() < BF16_BOUND * theirs.norm()
