"""A checkpoint's model as a plain Hugging Face directory."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ring_ray.checkpoint.store import STATE, CheckpointError, read_json, read_manifest
from ring_ray.checkpoint.tensors import POLICY, read_tensors
from ring_ray.config import ModelConfig
from ring_ray.engines.hf import load_model
from ring_ray.engines.modules import unique_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    model: ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    model_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What an export needs of state.json."""

    origin: _Origin
    config: _Config


def export_model(
    checkpoint: str, directory: str, *, model_path: str | None = None, trust_remote_code: bool = False
) -> None:
    """Write the policy, in the dtype that it was trained in, with config and tokenizer to ``directory``.

    Args:
        checkpoint: its URL.
        model_path: the model that training began from, where it is no longer where the checkpoint says.
        trust_remote_code: whatever the run had, since a checkpoint may be somebody else's.

    Raises:
        CheckpointError: the checkpoint is damaged, or is none of this model.
        FileExistsError: ``directory`` has something in it.
        OSError: there is no model at ``model_path``.
    """
    if Path(directory).is_dir() and any(Path(directory).iterdir()):
        raise FileExistsError(f"{directory}: is not empty")
    manifest, state = read_manifest(checkpoint), read_json(checkpoint, STATE, _State)
    path = model_path or state.origin.model_path
    model = load_model(path, replace(state.config.model, trust_remote_code=trust_remote_code))
    missing = unique_tensors(model)
    for name, master in read_tensors(checkpoint, manifest, POLICY):
        tensor = missing.pop(name, None)  # None for what is the optimizer's
        if tensor is None:
            continue
        if tensor.shape != master.shape:
            raise CheckpointError(f"{checkpoint}: {name} is {list(master.shape)}, but {list(tensor.shape)} in {path}")
        with torch.no_grad():
            tensor.copy_(master)
    if missing:
        raise CheckpointError(f"{checkpoint}: lacks {len(missing)} tensors of {path}, such as {next(iter(missing))}")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code).save_pretrained(directory)
