"""Paged attention: one gather and one `scaled_dot_product_attention` for all requests with as many new tokens.

To be batch-invariant, each new token is a request of its own, and those that attend to as many pages go together: then
the shapes of a token's sums depend on its position alone.

Dimensions: B requests of a group, T new tokens of each, L tokens that they attend to, H query heads, K key/value heads,
G = H / K query heads that share one, D head size, N new tokens of the whole step.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from vllm import envs
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder
from vllm.v1.kv_cache_layout import KVCacheLayout

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Group:
    """Requests with the same number of new tokens; all that decode form one."""

    rows: Tensor | slice  # of the step's tokens, [B T]; a slice where that is all of them
    pages_BP: Tensor
    mask_B1QL: Tensor  # 0 or -inf, Q = T G: every query head of a key head is one more query
    new_tokens: int  # T
    length: int  # L


@dataclass(frozen=True, slots=True)
class Metadata:
    """What all layers of one step share."""

    groups: list[Group]
    slots_N: Tensor  # where the new keys and values go


class TorchAttentionBackend(AttentionBackend):  # type: ignore[misc]
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float32", "bfloat16"]
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_name() -> str:
        # vLLM looks the name up among its own backends.
        return "CPU_ATTN"

    @staticmethod
    def get_impl_cls() -> type["TorchAttention"]:
        return TorchAttention

    @staticmethod
    def get_builder_cls() -> type["MetadataBuilder"]:
        return MetadataBuilder

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # A token's keys and values of all heads lie together, so that a new token is one row and a page one run.
        return (KVCacheLayout.LBNHC,)


class MetadataBuilder(AttentionMetadataBuilder[Metadata]):  # type: ignore[misc]
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        heads = vllm_config.model_config.get_num_attention_heads(vllm_config.parallel_config)
        self.queries_per_key = heads // kv_cache_spec.num_kv_heads
        self.block_size = kv_cache_spec.block_size
        self.dtype = kv_cache_spec.dtype

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Metadata:
        step = common_attn_metadata
        starts = step.query_start_loc_cpu[: step.num_reqs + 1].numpy()
        lengths = step.seq_lens[: step.num_reqs].numpy()
        new_tokens = np.diff(starts)
        by = self._by_pages if envs.VLLM_BATCH_INVARIANT else self._by_new_tokens
        groups = by(starts, new_tokens, lengths, step.block_table_tensor)
        return Metadata(groups, step.slot_mapping[: step.num_actual_tokens])

    def _by_new_tokens(
        self, starts: IntArray, new_tokens_B: IntArray, lengths_B: IntArray, pages_BP: Tensor
    ) -> list[Group]:
        counts = [int(count) for count in np.unique(new_tokens_B) if count > 0]
        groups = []
        for count in counts:
            requests = np.flatnonzero(new_tokens_B == count)
            rows: Tensor | slice = slice(0, int(starts[-1]))
            if len(counts) > 1:
                rows = torch.from_numpy((starts[requests, None] + np.arange(count)).ravel())
            lengths = lengths_B[requests]
            groups.append(self._group(rows, count, lengths, int(lengths.max()), pages_BP[requests]))
        return groups

    def _by_pages(self, starts: IntArray, new_tokens_B: IntArray, lengths_B: IntArray, pages_BP: Tensor) -> list[Group]:
        request_N = np.repeat(np.arange(len(new_tokens_B)), new_tokens_B)
        lengths_N = np.arange(1, starts[-1] + 1) + (lengths_B - starts[1:])[request_N]
        needed_N = -(-lengths_N // self.block_size)
        groups = []
        for pages in np.unique(needed_N):
            rows = np.flatnonzero(needed_N == pages)
            length = int(pages) * self.block_size
            groups.append(self._group(torch.from_numpy(rows), 1, lengths_N[rows], length, pages_BP[request_N[rows]]))
        return groups

    def _group(self, rows: Tensor | slice, count: int, lengths_B: IntArray, length: int, pages_BP: Tensor) -> Group:
        lengths = torch.from_numpy(lengths_B).unsqueeze(1)
        pages_BP = pages_BP[:, : -(-length // self.block_size)]
        # Past its end, a row of the block table holds what an earlier request left: masked, but NaN survives a mask.
        first_token_P = torch.arange(pages_BP.shape[1]) * self.block_size
        pages_BP = torch.where(first_token_P < lengths, pages_BP, pages_BP[:, :1])
        position_BT = lengths - count + torch.arange(count)
        hidden_BTL = torch.arange(length) > position_BT.unsqueeze(2)
        mask_BTL = torch.zeros(hidden_BTL.shape, dtype=self.dtype).masked_fill_(hidden_BTL, -torch.inf)
        mask_B1QL = mask_BTL.repeat_interleave(self.queries_per_key, dim=1).unsqueeze(1)
        return Group(rows, pages_BP.flatten(), mask_B1QL, count, length)


class TorchAttention(AttentionImpl):  # type: ignore[misc]
    """Causal attention of a decoder, over keys and values that live in pages."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
        **options: object,
    ) -> None:
        unsupported = {
            "ALiBi": alibi_slopes,
            "a sliding window": sliding_window,
            "a soft cap on logits": logits_soft_cap,
            "a key/value cache shared between layers": kv_sharing_target_layer_name,
            **options,
        }
        if asked := [name for name, value in unsupported.items() if value]:
            raise NotImplementedError(f"attention in PyTorch on a CPU does not support {', '.join(asked)}")
        self.num_heads, self.num_kv_heads, self.head_size, self.scale = num_heads, num_kv_heads, head_size, scale

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write the new keys and values into their pages, then attend.

        Args:
            query: [N, H, D].
            key, value: [N, K, D].
            kv_cache: [pages, K, block size, 2 D], in memory [pages, block size, K, 2 D].
            attn_metadata: None while vLLM measures memory.
            output: [N, H, D] or [N, H D], written in place.
        """
        if attn_metadata is None:
            return output
        slots_N = attn_metadata.slots_N
        tokens = slots_N.shape[0]
        cache = kv_cache.transpose(1, 2)
        new_NKD = torch.cat((key[:tokens], value[:tokens]), dim=-1)
        cache.view(-1, *new_NKD.shape[1:]).index_copy_(0, slots_N, new_NKD)
        pages = cache.view(cache.shape[0], -1)
        out_NHD = output.view(-1, self.num_heads, self.head_size)
        for group in attn_metadata.groups:
            out_NHD[group.rows] = self._attend(query[group.rows], pages, group)
        return output

    def _attend(self, query_MHD: Tensor, pages: Tensor, group: Group) -> Tensor:
        """Attention output of a group's tokens, [M, H, D] with M = B T."""
        heads, size, queries = self.num_kv_heads, self.head_size, self.num_heads // self.num_kv_heads
        batch = query_MHD.shape[0] // group.new_tokens
        kv_BLKD = pages.index_select(0, group.pages_BP).view(batch, -1, heads, 2 * size)[:, : group.length]
        key_BKLD, value_BKLD = kv_BLKD.transpose(1, 2).split(size, dim=-1)
        query_BKQD = query_MHD.view(batch, -1, heads, queries, size).transpose(1, 2).reshape(batch, heads, -1, size)
        out_BKQD = F.scaled_dot_product_attention(
            query_BKQD, key_BKLD, value_BKLD, attn_mask=group.mask_B1QL, scale=self.scale
        )
        return out_BKQD.view(batch, heads, -1, queries, size).transpose(1, 2).reshape(query_MHD.shape)
