"""AdamW under DeepSpeed: the learning rate's warm-up, the clipping of gradients, and steps that are skipped."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ring_ray.config import TrainConfig

REDUCE_BUCKET = 50_000_000  # gradients that travel at a time; ZeRO-3 holds a buffer for them throughout


class Optimizer:
    """Steps a DeepSpeed engine, which is to be made with `adamw` and the settings of `deepspeed_config`."""

    def __init__(self, parameters: Iterable[nn.Parameter], train: TrainConfig) -> None:
        self._parameters, self._train = list(parameters), train
        self._grad_norm = 0.0
        self.adamw = torch.optim.AdamW(
            self._parameters,
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
            fused=True,  # the fastest, on CPUs as well, where it steps with offload_optimizer
        )
        if train.zero_stage == 0:
            # DeepSpeed clips here too, but keeps the norm to itself.
            self.adamw.register_step_pre_hook(self._clip_gradients)

    def step(self, engine: Any, *, after: int, skip: bool) -> tuple[float, float]:
        """Step ``engine`` with its gradient, unless ``skip`` or that is not finite; the gradient is gone then.

        ``after`` how many steps decides the learning rate. Returns that and the gradient's norm before clipping.
        """
        rate = self._train.learning_rate * min(1.0, (after + 1) / max(self._train.warmup_steps, 1))
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self._leave_all_as_it_is(skip)
        engine.step()
        if self._train.zero_stage == 0:
            return rate, self._grad_norm
        norm = float(engine.get_global_grad_norm())
        if not math.isfinite(norm) and self._train.offload_optimizer:
            # In bfloat16 DeepSpeed keeps it there, and would add the next step's to it.
            engine.optimizer.averaged_gradients.clear()
        return rate, norm

    def _clip_gradients(self, *_: object) -> None:
        self._grad_norm = float(nn.utils.clip_grad_norm_(self._parameters, self._train.max_grad_norm))
        if not math.isfinite(self._grad_norm):
            self._leave_all_as_it_is(True)

    def _leave_all_as_it_is(self, skip: bool) -> None:
        """Whether AdamW does so in its next steps: torch's own way, made for loss scaling."""
        optimizer: Any = self.adamw
        optimizer.found_inf = torch.tensor(float(skip))


def deepspeed_config(dtype: str, train: TrainConfig, parameters: int) -> dict[str, Any]:
    """For a model of ``dtype`` with so many ``parameters``."""
    on_host = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # asked for, and without effect: batches are made here
        "managed_gradient_accumulation": False,  # `step` ends a batch, however many micro-batches it had
        "gradient_clipping": train.max_grad_norm if train.zero_stage > 0 else 0.0,
        "zero_optimization": {
            "stage": train.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": min(parameters, REDUCE_BUCKET),
            "offload_optimizer": on_host if train.offload_optimizer else None,
            "offload_param": on_host if train.offload_parameters else None,
        },
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled at start-up; torch's is fused as well
        "bf16": {"enabled": dtype == "bfloat16", "check_grad_overflow": True},  # skips, as it does in float32
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }
