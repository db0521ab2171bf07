"""Routing replay: training sends each position through the experts that the rollout chose for it (arXiv 2510.11370).

Two engines round differently, and a router near a tie then chooses other experts: the same weights give other
log-probs. Replayed, the choice is data, and only its weights are computed, from the router's own logits, so that
gradients reach the router. Dimensions: S positions of a micro-batch, N of them that predict trained tokens, L layers of
the model with or without experts, M of them with, E experts, K that a position is sent to.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ring_ray.config import require

ROUTERS = (
    "GraniteMoeSharedTopKRouter",
    "GraniteMoeTopKRouter",
    "MixtralTopKRouter",
    "OlmoeTopKRouter",
    "Qwen2MoeTopKRouter",
    "Qwen3MoeTopKRouter",
)
"""Softmax routers of transformers that return (logits, weights, indices) of the experts and do nothing besides."""


class RoutingReplay:
    """Makes a model take the keyword argument ``routed_experts_SLK``: integers, -1 for the router's own choice.

    transformers hands it on to the attention of every layer, as it does ``cu_seq_lens_q``, and again when a
    checkpointed layer is computed a second time. Without it the model is what it was. Raises ConfigError for a model
    whose routers are none of `ROUTERS`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
        routed = [(layer, router) for layer in layers if (router := _find_router(layer)) is not None]
        require(
            len(routed) > 0,
            "algo.replay_routing",
            True,
            f"{type(model).__name__} has none of the routers that it is known for: {', '.join(ROUTERS)}",
        )
        replays = [_LayerReplay(layer.self_attn, router) for layer, router in routed]
        self._layers = [replay.layer for replay in replays]  # M

    def choices(self, router_logits_MNE: Tensor, routed_experts_NLK: Tensor) -> Tensor:
        """Times [M, E] that each expert was chosen for some of the positions.

        As it was replayed, not as the routers would have it: a balance loss counts the load that experts had.
        """
        routed_MNK = routed_experts_NLK[:, self._layers].transpose(0, 1)
        own_MNK = router_logits_MNE.topk(routed_MNK.shape[-1], dim=-1).indices
        chosen_MC = _replayed(own_MNK, routed_MNK).flatten(1)
        layers, _, experts = router_logits_MNE.shape
        none_ME = torch.zeros(layers, experts, device=chosen_MC.device)
        return none_ME.scatter_add(1, chosen_MC, torch.ones_like(chosen_MC, dtype=torch.float32))


class _LayerReplay:
    """Brings a layer's experts from its attention, which gets the arguments of the model, to its router."""

    def __init__(self, attention: Any, router: nn.Module) -> None:
        self.layer: int = attention.layer_idx
        self._experts_SK: Tensor | None = None
        attention.register_forward_pre_hook(self._take, with_kwargs=True)
        router.register_forward_hook(self._replay)

    def _take(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        routed_experts_SLK = kwargs.get("routed_experts_SLK")
        self._experts_SK = None if routed_experts_SLK is None else routed_experts_SLK[:, self.layer]

    def _replay(self, router: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> Any:
        if self._experts_SK is None:
            return output
        logits_SE, weights_SK, own_SK = output
        experts_SK = _replayed(own_SK, self._experts_SK)
        if getattr(router, "norm_topk_prob", True):
            replayed_SK = logits_SE.gather(-1, experts_SK).softmax(-1, dtype=torch.float32)
        else:
            replayed_SK = logits_SE.softmax(-1, dtype=torch.float32).gather(-1, experts_SK)
        return logits_SE, replayed_SK.to(weights_SK.dtype), experts_SK


def _find_router(layer: nn.Module) -> nn.Module | None:
    return next((module for module in layer.modules() if type(module).__name__ in ROUTERS), None)


def _replayed(own: Tensor, routed: Tensor) -> Tensor:
    return torch.where(routed < 0, own, routed.to(own.dtype))
