"""The checkpoint that a run goes on from, if any, and whether it may."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ring_ray.checkpoint.store import STATE, CheckpointError, CheckpointStore, read_json, url_of
from ring_ray.config import ConfigError, RunConfig
from ring_ray.config.keys import flatten
from ring_ray.saver import RunOrigin, RunState

# What may change when a run goes on by itself: where it runs and who is told, not what it learns.
FREE = (
    "run_dir", "resume", "checkpoint", "cluster", "guard", "recovery", "reward.timeout_seconds", "sync", "tracking",
    "data.path", "rollout.gpu_memory_fraction", "rollout.kv_cache_mib", "rollout.max_batched_tokens",
    "rollout.max_sequences", "rollout.tensor_parallel", "train.activation_checkpointing", "train.max_skipped_steps",
    "train.micro_batch_tokens", "train.offload_optimizer", "train.offload_parameters", "train.packing",
    "train.steps", "train.zero_stage",
    "reward.sandbox.cache_mib", "reward.sandbox.cgroup", "reward.sandbox.runs_per_worker", "reward.sandbox.workers",
    "reward.model.batch_tokens",
    *(
        f"reward.{server}.{name}"
        for server in ("judge", "model")
        for name in (
            "api_key_variable", "cached", "concurrency", "request_seconds", "timeout_seconds", "tries", "url",
        )
    ),
)  # fmt: skip
# What can't change: it decides what the state looks like.
FIXED = ("algo.group_size", "algo.replay_routing", "model.dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A checkpoint that a run goes on from."""

    checkpoint: str  # its URL
    state: RunState
    own: bool  # it is this run's: what was reported up to it stays
    branched_from: str | None  # the URL of the checkpoint that was named, now or when this run began
    changes: tuple[str, ...]  # what the config says otherwise now, for people

    @property
    def sentence(self) -> str:
        changed = f", with {', '.join(self.changes)}" if self.changes else ""
        return f"going on after step {self.state.step} from {self.checkpoint}{changed}"

    def origin(self, wandb_id: str) -> RunOrigin:
        """Of the run that goes on, which is ``wandb_id`` in W&B."""
        return replace(self.state.origin, wandb_id=wandb_id, branched_from=self.branched_from)


def checkpoint_to_resume(config: RunConfig, store: CheckpointStore, *, finished: bool) -> Resumed | None:
    """What ``config.resume`` comes to; None for a run that begins anew.

    ``finished``: the run in this directory came to its end, and only more steps than it had would go on with it.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: it is another config's, and the message says which keys differ; or another run's.
    """
    if config.resume == "never":
        return None
    checkpoint = store.latest() if config.resume == "auto" else _named(config.resume, store)
    if checkpoint is None:
        return None
    state, own = read_state(checkpoint), store.holds(checkpoint)
    if config.resume == "auto" and finished and config.train.steps <= state.step:
        return None
    _check_owner(state.config, config)
    changed = differences(state.config, config)
    _check_changes(changed, config.resume, checkpoint)
    _check_rest(state, config, checkpoint, own=own)
    told = {key: values for key, values in changed.items() if not _among(key, ("run_dir", "resume", "tracking"))}
    return Resumed(
        checkpoint=checkpoint,
        state=state,
        own=own,
        branched_from=state.origin.branched_from if config.resume == "auto" else url_of(config.resume),
        changes=tuple(_told({key: values}) for key, values in told.items()),
    )


def checkpoint_to_go_back_to(store: CheckpointStore, before: int | None) -> Resumed | None:
    """The run's own newest checkpoint, or the newest of steps up to ``before``. Raises `CheckpointError`."""
    checkpoint = store.latest(before)
    if checkpoint is None:
        return None
    state = read_state(checkpoint)
    return Resumed(checkpoint=checkpoint, state=state, own=True, branched_from=state.origin.branched_from, changes=())


def read_state(checkpoint: str) -> RunState:
    """Raises `CheckpointError` where the checkpoint is not complete, or its state.json is not what was written."""
    return read_json(checkpoint, STATE, RunState)


def differences(then: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The values of each key that is not the same in both."""
    before, after = dict(flatten(asdict(then))), dict(flatten(asdict(now)))
    return {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}


def _named(resume: str, store: CheckpointStore) -> str:
    """The checkpoint ``resume``, or the newest of those that came of it: the same command again loses nothing."""
    named, newest = url_of(resume), store.latest()
    if newest is None:
        return named
    if read_state(newest).origin.branched_from == named:
        return newest
    if not store.holds(named):
        raise ConfigError(
            f"resume={resume}: there are checkpoints of another run, {newest} the newest; "
            "set hydra.run.dir to a new directory"
        )
    return named


def _check_owner(then: RunConfig, now: RunConfig) -> None:
    """Two runs that save to one directory would remove each other's checkpoints."""
    if (
        now.resume == "auto"
        and now.checkpoint.directory
        and Path(then.run_dir).resolve() != Path(now.run_dir).resolve()
    ):
        raise ConfigError(
            f"checkpoint.directory={now.checkpoint.directory}: has checkpoints of the run in {then.run_dir}; "
            "give each run a directory of its own"
        )


def _check_changes(changed: dict[str, tuple[Any, Any]], resume: str, checkpoint: str) -> None:
    if resume == "auto":
        refused = {key: values for key, values in changed.items() if not _among(key, FREE)}
        advice = "resume=never begins anew, resume=CHECKPOINT goes on with the change"
    else:
        refused = {key: values for key, values in changed.items() if key in FIXED}
        advice = "that can't change within a run"
    if refused:
        raise ConfigError(f"resume={resume}: {checkpoint} is of a run with {_told(refused)}: {advice}")


def _check_rest(state: RunState, config: RunConfig, checkpoint: str, *, own: bool) -> None:
    """That there are steps to take, and the model that reinforcement learning began from."""
    if state.step > config.train.steps or (state.step == config.train.steps and not own):
        raise ConfigError(f"train.steps={config.train.steps}: {checkpoint} is of step {state.step} already")
    model = Path(state.origin.model_path)
    if model.is_absolute() and not model.exists():  # else it is a model hub's name
        raise CheckpointError(f"{checkpoint}: needs the model that training began from, and {model} is gone")


def _among(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _told(changed: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}={before} (now {after})" for key, (before, after) in changed.items())
