"""What the training engine has to know of the inside of a Hugging Face model."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, apply_converters

from ring_ray.config import require


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, which then runs the layer once more.

    transformers has this as well, but not in evaluation mode, in which the policy is. Raises `ConfigError` for a model
    that does not name its layers.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    require(bool(layers), "train.activation_checkpointing", True, f"{type(model).__name__} does not name its layers")
    for layer in layers:
        # `forward` and not the module: hooks, such as those that gather its parameters, run once.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def sparse_moe_blocks(model: nn.Module) -> list[nn.Module]:
    """Modules that route tokens to experts of their own."""
    return [module for module in model.modules() if any(name == "experts" for name, _ in module.named_children())]


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers themselves, by name; what is tied is there once, under its first name."""
    names = model.state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    for name, tensor in names.items():
        first_names.setdefault(id(tensor), name)
    return {name: names[name] for name in first_names.values()}


def conversion_groups(model: PreTrainedModel, names: Iterable[str]) -> list[list[str]]:
    """Share out the ``names`` of a model's tensors: a group is what transformers needs at a time to convert it back.

    Mostly each is alone: a tensor of the checkpoint may have become a part of one in the model, such as one of many
    experts. Only where one of the checkpoint became several in the model have these to come together.
    """
    conversions = reversed(getattr(model, "_weight_conversions", None) or [])
    converters = [one.reverse_transform() for one in conversions if isinstance(one, WeightConverter)]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(apply_converters(name, converters)[0], []).append(name)
    return list(groups.values())
