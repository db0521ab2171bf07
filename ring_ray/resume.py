"""The checkpoint that a run goes on from, if any, and whether it may."""

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from ring_ray.checkpoint.store import CheckpointError, CheckpointStore, read_file, read_manifest, url_of
from ring_ray.config import ConfigError, RunConfig
from ring_ray.saver import STATE, RunState

# What may change when a run goes on by itself: where it runs and who is told, not what it learns.
FREE = (
    "run_dir", "resume", "checkpoint", "cluster", "evaluation", "reward", "sync", "tracking", "data.path",
    "data.eval_path", "model.path", "rollout.kv_cache_mib", "rollout.max_batched_tokens", "rollout.max_sequences",
    "train.activation_checkpointing", "train.micro_batch_tokens", "train.offload_optimizer",
    "train.offload_parameters", "train.packing", "train.steps", "train.zero_stage",
)  # fmt: skip
FIXED = ("algo.group_size", "model.dtype")  # what can't change: it decides what the state looks like


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A checkpoint that a run goes on from."""

    checkpoint: str  # its URL
    state: RunState
    changes: tuple[str, ...]  # what the config says otherwise now, for people

    @property
    def sentence(self) -> str:
        changed = f", with {', '.join(self.changes)}" if self.changes else ""
        return f"going on after step {self.state.step} from {self.checkpoint}{changed}"


def checkpoint_to_resume(config: RunConfig, store: CheckpointStore, *, finished: bool) -> Resumed | None:
    """What ``config.resume`` comes to; None for a run that begins anew.

    ``finished``: the run in this directory came to its end, and only more steps than it had would go on with it.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: it is another config's; the message says which keys differ.
    """
    if config.resume == "never":
        return None
    checkpoint = store.latest() if config.resume == "auto" else url_of(config.resume)
    if checkpoint is None:
        return None
    state = read_state(checkpoint)
    if config.resume == "auto" and finished and config.train.steps <= state.step:
        return None
    changed = differences(state.config, config)
    if config.resume == "auto":
        refused = {key: values for key, values in changed.items() if not _among(key, FREE)}
        advice = "resume=never begins anew, resume=CHECKPOINT goes on with the change"
    else:
        refused = {key: values for key, values in changed.items() if key in FIXED}
        advice = "that can't change within a run"
    if refused:
        raise ConfigError(f"resume={config.resume}: {checkpoint} is of a run with {_told(refused)}: {advice}")
    if state.step > config.train.steps:
        raise ConfigError(f"train.steps={config.train.steps}: {checkpoint} is of step {state.step} already")
    told = {key: values for key, values in changed.items() if not _among(key, ("run_dir", "resume", "tracking"))}
    return Resumed(checkpoint=checkpoint, state=state, changes=tuple(map(_told, ({key: told[key]} for key in told))))


def read_state(checkpoint: str) -> RunState:
    """Raises `CheckpointError` where the checkpoint is not complete, or its state.json is not what was written."""
    data = read_file(checkpoint, read_manifest(checkpoint).record(STATE))
    try:
        return msgspec.json.decode(data, type=RunState)
    except (msgspec.DecodeError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint}/{STATE}: {error}") from error


def differences(then: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The values of each key that is not the same in both."""
    before, after = _flat(asdict(then)), _flat(asdict(now))
    return {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _among(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _told(changed: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}={before} (now {after})" for key, (before, after) in changed.items())
