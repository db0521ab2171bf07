"""Tiny models of many families with random weights."""

import copy
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto import AutoModelForCausalLM

VOCABULARY, EXPERTS, TOP_K, LAYERS = 32, 6, 2, 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
NARROW: dict[str, Any] = {**SIZES, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K}
LOCAL: dict[str, Any] = {**SIZES, "num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K}
QWEN: dict[str, Any] = {**NARROW, "moe_intermediate_size": 12}
DENSE: dict[str, PreTrainedConfig] = {
    # Positions are absolute.
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        embd_pdrop=0,
        attn_pdrop=0,
        resid_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
}
SPARSE: dict[str, PreTrainedConfig] = {
    "granitemoe": GraniteMoeConfig(**LOCAL),
    "granitemoeshared": GraniteMoeSharedConfig(**LOCAL, shared_intermediate_size=8),
    "mixtral": MixtralConfig(**LOCAL),
    "olmoe": OlmoeConfig(**NARROW),
    "qwen2_moe": Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=8, norm_topk_prob=False),
    "qwen3_moe": Qwen3MoeConfig(**QWEN, head_dim=8, norm_topk_prob=True),
    # Its first layer has no experts.
    "qwen3_moe_mixed": Qwen3MoeConfig(**QWEN, head_dim=8, norm_topk_prob=False, mlp_only_layers=[0]),
}
FAMILIES = DENSE | SPARSE


def make_model(family: str) -> PreTrainedModel:
    """In fp32, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "norm" not in name:  # some families begin with zeros, and with routers that know no difference
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
