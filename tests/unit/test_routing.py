"""Routing replay against mixture-of-experts layers written out as a loop over positions and experts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

from ring_ray.algo.packing import PolicyInputs, collate
from ring_ray.config import ConfigError
from ring_ray.engines.hf import CausalPolicy
from ring_ray.engines.routing import ROUTERS
from ring_ray.types import ExpertArray, TokenBatch
from tests.unit.models import EXPERTS, LAYERS, SPARSE, TOP_K, VOCABULARY, make_model
from tests.unit.test_packing import make_batch, make_routed_segment

TEMPERATURE, FP32_BOUND = 0.8, 2e-5
FAMILY = pytest.mark.parametrize("family", SPARSE)
PACKINGS = pytest.mark.parametrize("packing", ["varlen", "padded"])


@pytest.fixture
def batch() -> TokenBatch:
    """Routed at random, each position to experts that differ."""
    rng = np.random.default_rng(0)

    def experts(positions: int) -> ExpertArray:
        return rng.permuted(np.tile(np.arange(EXPERTS, dtype=np.int16), (positions, LAYERS, 1)), axis=-1)[..., :TOP_K]

    sizes = [(3, 2, 7), (4, 0, 3), (2, 5, 6)]
    return make_batch(
        [make_routed_segment(rng, prompt, start, stop, VOCABULARY, experts) for prompt, start, stop in sizes]
    )


def inputs(batch: TokenBatch, policy: CausalPolicy, rows: tuple[int, ...] = (0, 1, 2), **changes: Any) -> PolicyInputs:
    weights = [0.0] * len(batch.segments)
    micro_batch = collate(batch, rows, weights, None, padded=policy.padded, with_routing=True)
    return micro_batch.inputs._replace(**changes)


class LoopedExperts(nn.Module):
    """A layer of experts, a position at a time; it is told where to send each."""

    def __init__(self, layer: nn.Module, normalized: bool) -> None:
        super().__init__()
        self.layer, self.normalized = layer, normalized
        self.routed_SK = torch.empty(0)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_SD = hidden_BTD.flatten(0, 1)
        router, experts = getattr(self.layer, "gate", None) or self.layer.router, self.layer.experts
        logits_SE = linear(hidden_SD, router.weight)
        rows = []
        for hidden, logits, routed in zip(hidden_SD, logits_SE, self.routed_SK.tolist(), strict=True):
            chosen = routed if routed[0] >= 0 else logits.topk(TOP_K).indices.tolist()
            weights = [logits.exp()[expert] / logits.exp().sum() for expert in chosen]
            total = sum(weights) if self.normalized else 1.0
            row = torch.zeros_like(hidden)
            for expert, weight in zip(chosen, weights, strict=True):
                gate, up = (experts.gate_up_proj[expert] @ hidden).chunk(2)
                row = row + weight / total * (experts.down_proj[expert] @ (silu(gate) * up))
            if hasattr(self.layer, "shared_expert"):
                row = row + self.layer.shared_expert_gate(hidden).sigmoid() * self.layer.shared_expert(hidden)
            rows.append(row)
        return torch.stack(rows).view_as(hidden_BTD)


def looped_model(family: str, routed_SLK: Tensor) -> PreTrainedModel:
    model = make_model(family)
    for index, layer in enumerate(model.model.layers):
        name = "block_sparse_moe" if hasattr(layer, "block_sparse_moe") else "mlp"
        if hasattr(getattr(layer, name), "experts"):
            normalized = getattr(model.config, "norm_topk_prob", True)
            looped = LoopedExperts(getattr(layer, name), normalized)
            looped.routed_SK = routed_SLK[:, index]
            setattr(layer, name, looped)
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def aim(logprobs_N: Tensor) -> Tensor:
    return logprobs_N.square().sum()


@PACKINGS
@FAMILY
def test_replayed_experts_do_what_a_loop_over_them_does(family: str, packing: str, batch: TokenBatch) -> None:
    model = make_model(family)
    policy = CausalPolicy(model, TEMPERATURE, packing=packing, replay_routing=True)
    given = inputs(batch, policy)
    assert given.routed_experts_SLK is not None
    assert (given.routed_experts_SLK[:, 0, 0] < 0).sum() == given.token_ids_BT.numel() - sum(
        len(segment.sequence.routed_experts) for segment in batch.segments
    )
    found = policy(*given).logprobs_N

    looped = looped_model(family, given.routed_experts_SLK)
    # transformers sees in the positions where rows begin, and masks the others, if there is no cache.
    logits_BTV = looped(given.token_ids_BT, position_ids=given.position_ids_BT, use_cache=False).logits
    logits_NV = logits_BTV[given.trained_BT]
    expected = (logits_NV / TEMPERATURE).log_softmax(-1).gather(-1, given.target_ids_N[:, None]).squeeze(-1)
    torch.testing.assert_close(found, expected, atol=FP32_BOUND, rtol=0)
    unlike = policy(*given._replace(routed_experts_SLK=None)).logprobs_N
    assert (found - unlike).abs().max() > 0.1

    theirs = {name.replace(".layer.", "."): g for name, g in gradients(looped, aim(expected)).items()}
    ours = gradients(model, aim(found))
    assert ours.keys() == theirs.keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    routers = [name for name in theirs if name.endswith((".gate.weight", ".router.weight"))]
    assert len(routers) == sum(layer_has_experts(layer) for layer in model.model.layers)
    assert all(theirs[name].abs().max() > 1e-3 * scale for name in routers)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=FP32_BOUND * scale, rtol=0)


def layer_has_experts(layer: nn.Module) -> bool:
    return any(type(module).__name__ in ROUTERS for module in layer.modules())


@FAMILY
def test_replaying_what_the_model_chooses_changes_nothing(family: str, batch: TokenBatch) -> None:
    model = make_model(family)
    policy = CausalPolicy(model, TEMPERATURE, replay_routing=True)
    given = inputs(batch, policy, routed_experts_SLK=None)
    chosen: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: chosen.append(output[2]))
        for module in model.modules()
        if type(module).__name__ in ROUTERS
    ]
    own = policy(*given)
    for hook in hooks:
        hook.remove()
    own_SLK = torch.zeros(given.token_ids_BT.numel(), LAYERS, TOP_K, dtype=torch.int16)
    own_SLK[:, LAYERS - len(chosen) :] = torch.stack(chosen, dim=1).short()
    for routed in (own_SLK, torch.full_like(own_SLK, -1)):
        replayed = policy(*given._replace(routed_experts_SLK=routed))
        torch.testing.assert_close(replayed.logprobs_N, own.logprobs_N, atol=1e-6, rtol=0)
        assert replayed.router is not None
        for found, expected in zip(replayed.router, own.router, strict=True):
            torch.testing.assert_close(found, expected)


@FAMILY
def test_the_choices_that_count_are_those_that_were_replayed(family: str, batch: TokenBatch) -> None:
    policy = CausalPolicy(make_model(family), TEMPERATURE, replay_routing=True)
    router = policy(*inputs(batch, policy)).router
    assert router is not None
    expected = torch.zeros(LAYERS, EXPERTS)
    for segment in batch.segments:
        first = len(segment.sequence.prompt_ids) + segment.start - 1
        for position in segment.sequence.routed_experts[first : first + len(segment)]:
            for layer, experts in enumerate(position):
                expected[layer, experts.astype(np.int64)] += 1
    assert torch.equal(router.choices_LE, expected[LAYERS - len(router.choices_LE) :])
    assert router.choices_LE.sum(1).tolist() == [TOP_K * batch.trained_tokens] * len(router.choices_LE)


@PACKINGS
def test_checkpointed_layers_are_recomputed_with_the_experts_of_their_own_micro_batch(
    packing: str, batch: TokenBatch
) -> None:
    """Two micro-batches of one shape go forward before either goes back."""
    given: list[PolicyInputs] = []
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model = make_model("qwen3_moe")
        policy = CausalPolicy(model, TEMPERATURE, packing=packing, replay_routing=True)
        one = inputs(batch, policy)
        assert one.routed_experts_SLK is not None
        given = [one, one._replace(routed_experts_SLK=one.routed_experts_SLK.flip(0))]
        if checkpointing:
            model.activation_checkpointing_enable()
            model.train()
        losses = [aim(policy(*each).logprobs_N) for each in given]
        model.zero_grad()
        for loss in losses:
            loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = found
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


def test_a_rank_without_rows_replays_nothing(batch: TokenBatch) -> None:
    policy = CausalPolicy(make_model("qwen3_moe"), TEMPERATURE, replay_routing=True)
    outputs = policy(*inputs(batch, policy, rows=()))
    assert outputs.router is not None
    assert not outputs.router.choices_LE.any()


def test_models_without_a_known_router_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"algo\.replay_routing=True: LlamaForCausalLM"):
        CausalPolicy(make_model("llama"), TEMPERATURE, replay_routing=True)
    with torch.device("meta"):
        grouped = DeepseekV3ForCausalLM(DeepseekV3Config(num_hidden_layers=4, n_routed_experts=8, hidden_size=64))
    with pytest.raises(ConfigError, match=r"algo\.replay_routing=True: DeepseekV3ForCausalLM"):
        CausalPolicy(grouped, TEMPERATURE, replay_routing=True)


def test_routed_experts_are_refused_where_nothing_replays_them(batch: TokenBatch) -> None:
    policy = CausalPolicy(make_model("qwen3_moe"), TEMPERATURE)
    with pytest.raises(ValueError, match="replays no routing"):
        policy(*inputs(batch, policy))
