"""The kernels outside attention, in PyTorch, under the names and schemas of vLLM's compiled libraries.

Dimensions: T tokens, H hidden size, E experts, K of them per token, N = T K, I intermediate size of one, B sequences,
V vocabulary.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

INVARIANT_ROWS = 32  # of one product: with fewer there are more calls, with more there is more padding


def silu_and_mul(out: Tensor, gate_up: Tensor) -> None:
    """SwiGLU: out [T, I] = silu(gate) * up, from gate_up [T, 2 I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    torch.mul(F.silu(gate), up, out=out)


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    rope_dim_offset: int = 0,
    inverse: bool = False,
) -> None:
    """Rotate query [T, H D] and key [T, Hkv D] in place by their positions [T]; cos_sin_cache [positions, rotated]."""
    if rope_dim_offset or inverse:
        raise NotImplementedError("rotary embedding with an offset or inverted, on a CPU")
    cos_T1D, sin_T1D = cos_sin_cache[positions.flatten()].unsqueeze(1).chunk(2, dim=-1)
    rotated = cos_sin_cache.shape[-1]
    for x in (query, key):
        if x is None:
            continue
        x_THD = x.view(positions.numel(), -1, head_size)[..., :rotated]
        first, second = x_THD.chunk(2, dim=-1) if is_neox else (x_THD[..., ::2], x_THD[..., 1::2])
        turned = first * cos_T1D - second * sin_T1D
        second.mul_(cos_T1D).add_(first * sin_T1D)
        first.copy_(turned)


def compute_slot_mapping(
    query_start_loc: Tensor, positions: Tensor, block_table: Tensor, slot_mapping: Tensor, block_size: int
) -> None:
    """Where each new token's key and value go in the paged cache: slot = page * block_size + offset, [T]."""
    query_lens = query_start_loc.diff()
    request_T = torch.repeat_interleave(query_lens)
    position_T = positions[: request_T.shape[0]]
    page_T = block_table[request_T, position_T // block_size]
    torch.add(position_T % block_size, page_T, alpha=block_size, out=slot_mapping[: request_T.shape[0]])


def init_cpu_memory_env(node_ids: list[int]) -> None:
    """Memory is not bound to a NUMA node."""


def topk_softmax(
    topk_weights: Tensor,
    topk_ids: Tensor,
    token_expert_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    bias: Tensor | None = None,
    is_padding: Tensor | None = None,
) -> None:
    """Softmax over the experts' logits gating_output [T, E]; its K largest into topk_weights and topk_ids [T, K]."""
    if bias is not None or is_padding is not None:
        raise NotImplementedError("softmax routing with a bias or a padding mask, on a CPU")
    weights_TK, ids_TK = gating_output.softmax(dim=-1, dtype=torch.float32).topk(topk_weights.shape[1], dim=-1)
    if renormalize:
        weights_TK /= weights_TK.sum(dim=-1, keepdim=True)
    topk_weights.copy_(weights_TK)
    topk_ids.copy_(ids_TK)


def random_sample(logits_BV: Tensor, drawn_B: Tensor) -> Tensor:
    """The token of each row's softmax, [B], that a number drawn from [0, 1) falls on, in float64.

    Sums in float64, or the rare tokens of a large vocabulary would be lost to rounding. A token of probability 0 never
    comes.
    """
    cumulative_BV = logits_BV.softmax(dim=-1, dtype=torch.float32).cumsum(dim=-1, dtype=torch.float64)
    drawn_B1 = drawn_B.unsqueeze(1) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, drawn_B1, right=True).squeeze(1)


def invariant_linear(x_TH: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, but not even the last bit of a row depends on the other rows.

    In which order a BLAS adds up depends on the number of rows: here that is always the same, padding included.
    """
    filled = F.pad(x_TH, (0, 0, 0, -len(x_TH) % INVARIANT_ROWS))
    return torch.cat([F.linear(rows, weight, bias) for rows in filled.split(INVARIANT_ROWS)])[: len(x_TH)]


def grouped_linear(x_NH: Tensor, weight: Tensor, ends_E: Tensor) -> Tensor:
    """Expert e's slice of x, which ends at ends[e], times its weight [E, I, H]: [N, I]."""
    return F.grouped_mm(x_NH, weight.transpose(1, 2), offs=ends_E)


def invariant_grouped_linear(x_NH: Tensor, weight: Tensor, ends_E: Tensor) -> Tensor:
    """As `grouped_linear`, by `invariant_linear`."""
    slices = pairwise([0, *ends_E.tolist()])
    return torch.cat([invariant_linear(x_NH[start:end], w) for w, (start, end) in zip(weight, slices, strict=True)])


def experts_forward(
    x_TH: Tensor,
    w13: Tensor,
    w2: Tensor,
    weights_TK: Tensor,
    ids_TK: Tensor,
    linear: Callable[[Tensor, Tensor, Tensor], Tensor] = grouped_linear,
) -> Tensor:
    """SwiGLU experts: sum over k of weights[t, k] * expert ids[t, k] of x[t].

    Args:
        x_TH: tokens.
        w13: gate and up projections, [E, 2 I, H].
        w2: down projections, [E, H, I].
        weights_TK: how much each of the K chosen experts counts.
        ids_TK: which experts were chosen.
        linear: `grouped_linear` or the invariant one.

    Returns:
        [T, H], dtype of ``x_TH``.
    """
    tokens, top_k = ids_TK.shape
    # Sorted by expert, the tokens of each are one slice of a grouped product.
    ids_N, order_N = ids_TK.flatten().sort(stable=True)
    ends_E = torch.bincount(ids_N, minlength=w13.shape[0]).cumsum(0, dtype=torch.int32)
    gate, up = linear(x_TH[order_N // top_k], w13, ends_E).chunk(2, dim=-1)
    out_NH = linear(F.silu(gate).mul_(up), w2, ends_E)
    out_TKH = torch.empty_like(out_NH).index_copy_(0, order_N, out_NH).view(tokens, top_k, -1)
    return torch.bmm(weights_TK.to(x_TH.dtype).unsqueeze(1), out_TKH).squeeze(1)


_KERNELS: dict[str, Callable[..., None]] = {
    "silu_and_mul(Tensor! out, Tensor input) -> ()": silu_and_mul,
    "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, "
    "bool is_neox, int rope_dim_offset=0, bool inverse=False) -> ()": rotary_embedding,
    "compute_slot_mapping_kernel_impl(Tensor query_start_loc, Tensor positions, Tensor block_table, "
    "Tensor! slot_mapping, SymInt block_size) -> ()": compute_slot_mapping,
    "init_cpu_memory_env(SymInt[] node_ids) -> ()": init_cpu_memory_env,
}
_MOE_KERNELS: dict[str, Callable[..., None]] = {
    "topk_softmax(Tensor! topk_weights, Tensor! topk_indices, Tensor! token_expert_indices, Tensor gating_output, "
    "bool renormalize, Tensor? bias=None, Tensor? is_padding=None) -> ()": topk_softmax,
}
_LIBRARIES = (
    (torch.library.Library("_C", "FRAGMENT"), _KERNELS),
    (torch.library.Library("_moe_C", "FRAGMENT"), _MOE_KERNELS),
)


def register() -> None:
    """Define the kernels as ``torch.ops._C.*`` and ``torch.ops._moe_C.*``."""
    for library, kernels in _LIBRARIES:
        for schema, kernel in kernels.items():
            library.impl(library.define(schema), kernel, "CompositeExplicitAutograd")
