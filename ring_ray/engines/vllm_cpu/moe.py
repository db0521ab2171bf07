"""Where vLLM's mixture-of-experts layer meets `kernels.experts_forward`."""

from typing import Any

from torch import Tensor
from vllm import envs
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from ring_ray.engines.vllm_cpu import kernels


class TorchMoEMethod(UnquantizedFusedMoEMethod):  # type: ignore[misc]
    """Takes the place of `UnquantizedFusedMoEMethod`: modular, so that vLLM routes and can return the routed experts.

    The weights stay as they were loaded, so an update in place reaches them.
    """

    def __init__(self, moe: Any) -> None:
        # Not the parent's: it looks for a compiled kernel.
        FusedMoEMethodBase.__init__(self, moe)
        self.unquantized_backend, self.experts_cls = UnquantizedMoeBackend.OOT, None
        if moe.activation != MoEActivation.SILU:
            raise NotImplementedError(f"experts with activation {moe.activation}, on a CPU")
        if moe.has_bias:
            raise NotImplementedError("experts with a bias, on a CPU")

    @property
    def is_monolithic(self) -> bool:
        return False

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        if layer.apply_router_weight_on_input or layer.expert_map is not None:
            raise NotImplementedError("experts weighted on input, or spread over ranks, on a CPU")
        linear = kernels.invariant_grouped_linear if envs.VLLM_BATCH_INVARIANT else kernels.grouped_linear
        return kernels.experts_forward(x, layer.w13_weight, layer.w2_weight, topk_weights, topk_ids, linear)


def register() -> None:
    """Make vLLM build `TorchMoEMethod` wherever it would build its own."""
    UnquantizedFusedMoEMethod.register_oot(TorchMoEMethod, name="UnquantizedFusedMoEMethod")
