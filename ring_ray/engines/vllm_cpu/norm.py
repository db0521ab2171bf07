"""RMSNorm in one call of PyTorch, where vLLM's own makes eight and looks each of them up."""

import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.layernorm import RMSNorm


class TorchRMSNorm(RMSNorm):  # type: ignore[misc]
    """Takes the place of `RMSNorm`."""

    def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x [..., H], or that of x + residual, and the sum, which takes the residual's place."""
        if self.variance_size_override is not None or not self.has_weight:
            return super().forward_cpu(x, residual)  # type: ignore[no-any-return]
        if residual is not None:
            x = residual.add_(x)
        normed = F.rms_norm(x, self.weight.shape, self.weight.data, self.variance_epsilon)
        return normed if residual is None else (normed, x)


def register() -> None:
    """Make vLLM build `TorchRMSNorm` wherever it would build its own."""
    RMSNorm.register_oot(TorchRMSNorm, name="RMSNorm")
