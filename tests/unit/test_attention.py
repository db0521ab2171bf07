"""Attention over rows end to end: each row as if it were alone, by loops in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3NextConfig,
    StableLmConfig,
)

from ring_ray.engines import attention
from ring_ray.engines.attention import packs_varlen, varlen_attention
from tests.unit.models import FAMILIES, LAYERS, SIZES, make_model

LENGTHS, HEADS, GROUPS, HEAD_DIM = [3, 1, 6], 4, 2, 8
MODULE = nn.Module()


def heads() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(1, count, sum(LENGTHS), HEAD_DIM, generator=generator, dtype=torch.float64).requires_grad_()
        for count in (HEADS, GROUPS, GROUPS)
    )


def ends() -> dict[str, Any]:
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    return {"cu_seq_lens_q": cu_seqlens, "max_length_q": max(LENGTHS)}


def by_definition(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """[S, H, D], a position and a head at a time."""
    positions = [(start, start + t) for start, n in zip([0, 3, 4], LENGTHS, strict=True) for t in range(n)]
    attended = []
    for start, position in positions:
        for head in range(HEADS):
            group, seen = head // (HEADS // GROUPS), slice(start, position + 1)
            scores = key[0, group, seen] @ query[0, head, position] * scaling
            attended.append(scores.exp() / scores.exp().sum() @ value[0, group, seen])
    return torch.stack(attended).unflatten(0, (-1, HEADS))


@pytest.mark.parametrize("scaling", [HEAD_DIM**-0.5, 0.7])
def test_each_row_sees_itself_only_and_so_do_its_gradients(scaling: float) -> None:
    inputs = heads()
    found, _ = varlen_attention(MODULE, *inputs, None, scaling=scaling, **ends())
    expected = by_definition(*inputs, scaling)
    torch.testing.assert_close(found[0], expected, atol=1e-12, rtol=0)
    toward = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((found[0] * toward).sum(), inputs)
    for gradient, right in zip(gradients, torch.autograd.grad((expected * toward).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, right, atol=1e-12, rtol=0)


def test_without_ends_every_entry_of_the_batch_is_a_row() -> None:
    start, stop, inputs = 4, 10, heads()
    together, _ = varlen_attention(MODULE, *inputs, None, scaling=math.pi, **ends())
    alone = [tensor[:, :, start:stop] for tensor in inputs]
    batch, _ = varlen_attention(MODULE, *(tensor.expand(2, -1, -1, -1) for tensor in alone), None, scaling=math.pi)
    for entry in batch:
        torch.testing.assert_close(entry, together[0, start:stop], atol=1e-12, rtol=0)


def test_the_kernel_for_gpus_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and types only, by its own shape inference: it runs in tests/gpu."""
    monkeypatch.setattr(attention, "_flash_takes", lambda query, value: True)
    inputs = [tensor.detach().to("meta", torch.bfloat16).requires_grad_() for tensor in heads()]
    arguments = ends() | {"cu_seq_lens_q": ends()["cu_seq_lens_q"].to("meta")}
    found, _ = varlen_attention(MODULE, *inputs, None, scaling=0.7, **arguments)
    assert found.shape == (1, sum(LENGTHS), HEADS, HEAD_DIM)
    gradients = torch.autograd.grad(found.sum(), inputs)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in inputs]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"sliding_window": 5}, "sliding_window=5 and a row of 6 tokens"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(HEADS)}, "s_aux"),
        ({"is_causal": False}, "not causal"),
        ({"attention_mask": torch.zeros(1, 1, 10, 10)}, "an attention mask"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(NotImplementedError, match=f"Module needs train.packing=padded: it has .*{named}"):
        varlen_attention(MODULE, *heads(), asked.pop("attention_mask", None), **asked, **ends())


def test_a_cache_of_earlier_keys_is_refused() -> None:
    query, key, value = heads()
    with pytest.raises(NotImplementedError, match="a cache of earlier keys"):
        varlen_attention(MODULE, query[:, :, -1:], key, value, None)


def test_a_window_that_no_row_exceeds_changes_nothing() -> None:
    wide, _ = varlen_attention(MODULE, *heads(), None, sliding_window=6, **ends())
    torch.testing.assert_close(wide, varlen_attention(MODULE, *heads(), None, **ends())[0], atol=0, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_attention_can_be_replaced(family: str) -> None:
    assert packs_varlen(make_model(family))


NOT_VARLEN: list[PreTrainedConfig] = [
    BloomConfig(n_layer=1, hidden_size=16, n_head=2, vocab_size=32),  # ALiBi is of its own making
    Gemma2Config(**SIZES, head_dim=8, layer_types=["full_attention"] * LAYERS, sliding_window=None),  # soft caps
    GraniteMoeHybridConfig(**SIZES, layer_types=["attention"] * LAYERS, mamba_n_heads=4),  # could have a state
    JambaConfig(**SIZES),
    Lfm2Config(**SIZES, layer_types=["conv", "conv", "full_attention"]),
    MistralConfig(**SIZES, sliding_window=16),
    Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    Qwen3NextConfig(**SIZES),
    StableLmConfig(**SIZES),  # does not say that it can
]


@pytest.mark.parametrize("config", NOT_VARLEN, ids=lambda config: config.model_type)
def test_models_that_look_across_rows_elsewhere_are_padded(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    assert not packs_varlen(model)


def test_a_model_whose_attention_cannot_be_set_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    assert not packs_varlen(model)
