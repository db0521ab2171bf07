"""Causal attention over rows that lie end to end, none of which sees another: packing without padding.

A model takes it by name (transformers' `AttentionInterface`) and hands it the arguments that flash attention goes by,
``cu_seq_lens_q`` and ``max_length_q``, from the call of the model. transformers builds no mask for an implementation
that registers none, so that padding has to be on the right and needs no mask.

Dimensions: H heads of queries, G heads of keys and values, S tokens of all rows, D of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

VARLEN = "ring_ray_varlen"
FLASH_MAX_HEAD_DIM = 256
NOT_DONE = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "cache")

_end_to_end: ContextVar[bool] = ContextVar("end_to_end", default=False)


@contextmanager
def rows_end_to_end(are_they: bool) -> Iterator[None]:
    """Whether rows lie end to end in the forward pass within: some models keep from their attention what says so."""
    token = _end_to_end.set(are_they)
    try:
        yield
    finally:
        _end_to_end.reset(token)


def packs_varlen(model: PreTrainedModel) -> bool:
    """Whether, by its own account, only attention looks across positions, and `varlen_attention` can take its place.

    Not so with convolutions, linear attention or a state, nor for models that attend to a window or a chunk.
    """
    config = model.config.get_text_config()
    return bool(
        model._supports_attention_backend
        and model._can_set_attn_implementation()
        and not model._is_stateful
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and not getattr(config, "attn_logit_softcapping", None)
    )


def varlen_attention(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [B, S, H, D] within each row, with no weights to return.

    ``cu_seq_lens_q`` int32 [rows + 1] says where the rows of a batch of one begin and end, ``max_length_q`` how long
    the longest is; without them each of the B entries is a row. Raises NotImplementedError for what it can't do.
    """
    longest = query_BHSD.shape[2] if max_length_q is None else max_length_q
    asked = {
        "layers that drop the arguments for attention": _end_to_end.get() and cu_seq_lens_q is None,
        "an attention mask": attention_mask is not None,
        "a cache of earlier keys": query_BHSD.shape[2] != key_BGSD.shape[2],
    }
    _refuse_unsupported(module, asked, longest, **others)
    # Fewer heads of keys and values than of queries: each serves a group of them.
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query_BHSD.shape[1] != key_BGSD.shape[1]}
    if cu_seq_lens_q is None:
        return _causal(query_BHSD, key_BGSD, value_BGSD, **options), None
    if _flash_takes(query_BHSD, value_BGSD):
        query_SHD, key_SGD, value_SGD = (heads[0].transpose(0, 1) for heads in (query_BHSD, key_BGSD, value_BGSD))
        ends = (cu_seq_lens_q, cu_seq_lens_q, longest, longest)
        attended_SHD: Any = varlen_attn(query_SHD, key_SGD, value_SGD, *ends, window_size=(-1, 0), **options)
        return attended_SHD[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(heads.split(lengths, dim=2) for heads in (query_BHSD, key_BGSD, value_BGSD)), strict=True)
    return torch.cat([_causal(query, key, value, **options) for query, key, value in rows], dim=1), None


AttentionInterface.register(VARLEN, varlen_attention)


def _causal(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, **options).transpose(1, 2)


def _flash_takes(query_BHSD: Tensor, value_BGSD: Tensor) -> bool:
    """Whether PyTorch's flash attention kernel has a version for these heads on their device."""
    head_dim = query_BHSD.shape[-1]
    return (
        query_BHSD.is_cuda
        and query_BHSD.dtype in (torch.bfloat16, torch.float16)
        and head_dim == value_BGSD.shape[-1]
        and head_dim % 8 == 0
        and head_dim <= FLASH_MAX_HEAD_DIM
        and torch.cuda.get_device_capability(query_BHSD.device) >= (8, 0)
    )


def _refuse_unsupported(
    module: nn.Module,
    asked: dict[str, bool],
    longest: int,
    *,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> None:
    asked |= {
        "attention that is not causal": not (getattr(module, "is_causal", True) if is_causal is None else is_causal),
        f"dropout={dropout}": dropout > 0,
        f"sliding_window={sliding_window} and a row of {longest} tokens": 0 < (sliding_window or 0) < longest,
        **{name: others.get(name) is not None for name in NOT_DONE},
    }
    if unsupported := [name for name, is_asked in asked.items() if is_asked]:
        reasons = ", ".join(unsupported)
        raise NotImplementedError(f"{type(module).__name__} needs train.packing=padded: it has {reasons}")
