"""What a checkpoint holds of the policy: its training state by name, whatever ZeRO makes of it.

::

    model.norm.weight              the master weights, float32, in the parameter's shape; of a buffer its value
    model.norm.weight#exp_avg      Adam's first moment, likewise, of parameters alone
    model.norm.weight#exp_avg_sq   Adam's second moment, likewise
    #steps                         optimizer steps so far, int64 []

Names are those of `modules.unique_tensors`. Neither the number of ranks nor the ZeRO stage shows in a state, so that it
can be restored with others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
STEPS = "#steps"


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a parameter that this rank's optimizer steps."""

    flat: Tensor  # this rank's parts of many parameters, end to end [n]; without ZeRO the parameter itself
    start: int  # of the part in ``flat``
    offset: int  # of the part in the parameter
    length: int  # elements; 0 where the parameter is another rank's

    def of_parameter(self, whole: Tensor) -> Tensor:
        """A view of the part in a contiguous tensor of the parameter's shape."""
        return whole.view(-1).narrow(0, self.offset, self.length)

    def of_flat(self, flat: Tensor) -> Tensor:
        """A view of the part in ``flat``, or in a moment of it."""
        return flat.detach().view(-1).narrow(0, self.start, self.length)


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the state."""

    tensor: Tensor  # the model's
    shard: Shard | None  # None for a buffer
    moment: str | None  # which of Adam's it is; None for the weights themselves

    @property
    def shape(self) -> torch.Size:
        return torch.Size(getattr(self.tensor, "ds_shape", self.tensor.shape))  # ZeRO-3 empties the tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype if self.shard is None else torch.float32


class TrainingState:
    """The state of one rank's ``engine``, as DeepSpeed makes it around AdamW with one group of parameters.

    ``tensors`` are the model's by name, and ``steps`` counts the optimizer steps, int64 [].
    """

    def __init__(
        self, engine: Any, tensors: Mapping[str, Tensor], steps: Tensor, *, zero_stage: int, device: torch.device
    ) -> None:
        self._engine, self._zero_stage, self._device = engine, zero_stage, device
        self._steps = steps
        self._parts: dict[str, Part] = {}
        for name, tensor in {**tensors, STEPS: steps}.items():
            shard = self._shard(tensor) if tensor.requires_grad else None
            self._parts[name] = Part(tensor, shard, None)
            if shard is not None:
                self._parts |= {f"{name}#{moment}": Part(tensor, shard, moment) for moment in MOMENTS}

    def snapshot(self) -> dict[str, Tensor]:
        """Copies on the host of this rank's share: of the whole state each tensor is in one rank's. Collective.

        The shares are about equally large. On the device one tensor at a time is made whole.
        """
        sizes = {name: part.shape.numel() * part.dtype.itemsize for name, part in self._parts.items()}
        share = {}
        for name, owner in balance(sizes, dist.get_world_size()).items():
            whole = self._whole(self._parts[name], owner)
            if owner == dist.get_rank():
                share[name] = whole.cpu()
        return share

    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Be as the whole state ``tensors`` says, which every rank is given, in any order.

        Raises ValueError that names the tensor where one is unknown, comes twice, has another shape or dtype, or is
        missing. What came before it is restored by then: the engine is of no use until all of a state is.
        """
        missing = dict(self._parts)
        for name, value in tensors:
            part = missing.pop(name, None)
            if part is None:
                raise ValueError(f"{name}: the model has no such training state, or it came before")
            if (value.shape, value.dtype) != (part.shape, part.dtype):
                raise ValueError(f"{name}: is {_kind(value)}, but the model's is {_kind(part)}")
            self._set(part, value)
        if missing:
            raise ValueError(f"{next(iter(missing))}: missing in the training state, the first of {len(missing)}")
        for part in self._parts.values():
            if part.shard is not None:
                self._adam(part.shard.flat)["step"].copy_(self._steps)

    def _whole(self, part: Part, owner: int) -> Tensor:
        """A copy, on the rank that owns it."""
        if part.shard is None:
            return part.tensor.detach().clone()
        whole = torch.zeros(part.shape, dtype=part.dtype, device=self._device)
        part.shard.of_parameter(whole).copy_(self._stepped(part, part.shard))
        if self._zero_stage > 0:
            # Added as integers: float -0.0 would not survive the zeros of other ranks.
            dist.reduce(whole.view(-1).view(torch.int32), dst=owner)
        return whole

    def _set(self, part: Part, value: Tensor) -> None:
        if part.shard is not None:
            shard_value = part.shard.of_parameter(value.contiguous())
            self._stepped(part, part.shard).copy_(shard_value)
            if self._zero_stage == 3 and part.moment is None:
                part.tensor.ds_tensor.data[: part.shard.length].copy_(shard_value)  # type: ignore[attr-defined]
        if part.moment is None and part.tensor.shape == part.shape:  # all of it is on this rank
            part.tensor.data.copy_(value)

    def _stepped(self, part: Part, shard: Shard) -> Tensor:
        """A view of what this rank's optimizer has of it, float32 [length]."""
        return shard.of_flat(shard.flat if part.moment is None else self._adam(shard.flat)[part.moment])

    def _adam(self, flat: Tensor) -> dict[str, Tensor]:
        """AdamW's own state for what it steps; before its first step as it would make it there."""
        state: dict[str, Tensor] = self._engine.basic_optimizer.state[flat]
        if not state:
            state |= {"step": torch.zeros((), device=flat.device)}
            state |= {moment: torch.zeros_like(flat) for moment in MOMENTS}
        return state

    def _shard(self, parameter: Any) -> Shard:
        if self._zero_stage == 0:
            return Shard(parameter, 0, 0, parameter.numel())
        optimizer = self._engine.optimizer
        if self._zero_stage == 3:
            group, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = min(dist.get_rank() * padded, parameter.ds_numel)
            length = min(padded, parameter.ds_numel - offset)
            return Shard(optimizer.fp32_partitioned_groups_flat[group], start, offset, length)
        (flat,) = optimizer.param_groups[0]["params"]
        mapping = parameter._hp_mapping
        if mapping is None:
            return Shard(flat, 0, 0, 0)
        address = mapping.hp_fragment_address
        return Shard(flat, address.start, mapping.lp_fragment_address.start, address.numel)


def balance(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """A rank for each name, the largest first, such that the sizes that each rank has sum up to about the same."""
    owners, loads = {}, [0] * ranks
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


def _kind(tensor: Tensor | Part) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
