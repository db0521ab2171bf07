"""From the command line to a `RunConfig`: the only file that knows Hydra."""

import os
import re
import select
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ring_ray.actors.job import default_outputs
from ring_ray.config import ConfigError, RunConfig, did_you_mean
from ring_ray.config.help import groups, terminal
from ring_ray.config.keys import names

CONF = Path(__file__).parents[1] / "conf"

SET_BY_SWEEP = ("tracking.group=", "tracking.job_number=")  # overrides that tell a run its place in a sweep


def _help(*, _root_: DictConfig) -> str:
    """Every group and key, for hydra.help.template in conf/config.yaml."""
    values: Any = OmegaConf.to_container(_root_)
    width = min(shutil.get_terminal_size().columns, 120)
    text = terminal(groups(CONF), _root_.hydra.runtime.choices, values, width)
    return text.replace("$", "$$")  # Hydra takes it for a template


def _schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(RunConfig)
    for users_own in (schema.data.weights, schema.reward.verifiers):  # by domains of the data, and by names of rows
        OmegaConf.set_struct(users_own, False)
    return schema


OmegaConf.register_new_resolver("ring_ray.outputs", default_outputs)
ConfigStore.instance().store(name="schema", node=_schema())
OmegaConf.register_new_resolver("ring_ray.help", _help)


def to_run_config(composed: DictConfig) -> RunConfig:
    """Check a composed config. Raises `ConfigError` naming the key."""
    try:
        # A key that was added with + is in the composed config, but can't be merged into the schema.
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        config = OmegaConf.to_object(OmegaConf.merge(RunConfig, values))
    except OmegaConfBaseException as error:
        raise ConfigError(_explained(error)) from error
    assert isinstance(config, RunConfig)
    return config


def composed(overrides: list[str]) -> RunConfig:
    """The config that `jobs/train.py` would run with ``overrides``. Raises `ConfigError`."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            # Hydra names the run's directory when it runs something.
            found = hydra.compose("config", overrides=["run_dir=outputs", *overrides])
    except Exception as error:  # what Hydra can't read may fail anywhere in it
        raise ConfigError(_explained(error, overrides)) from error
    return to_run_config(found)


def _explained(error: Exception, overrides: Sequence[str] = ()) -> str:
    """What YAML, Hydra or OmegaConf refused: the file where it was in one, the key, the nearest names that exist.

    Where nothing tells either, all of ``overrides`` may be to blame.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: not YAML: {error.problem}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name}: must be one of {', '.join(error.options)}{did_you_mean(name, error.options)}"
    message = str(error).partition("\n\nConfig search path")[0]
    file = re.match(r"In '(.+?)': ", message)
    where = f"{file[1]}.yaml: " if file else _read_last(error)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        message = str(cause).partition("\n")[0]
        if cause.full_key not in (None, "", "_dummy_"):  # the last is Hydra's own, around lists of defaults
            return f"{where}{cause.full_key}: {_no_such_key(cause) or message}"
    elif isinstance(error, RecursionError):
        message = "nested too deep, or in itself"
    if overrides and where in ("", "config.yaml: "):  # the latter is not the user's
        where = f"{' '.join(overrides)}: {where}"
    return where + (message.removeprefix(file[0] if file else "") or "Hydra can't read it")


def _no_such_key(error: OmegaConfBaseException) -> str:
    """What to say where that is what is wrong, else nothing."""
    if not isinstance(error, ConfigAttributeError | ConfigKeyError):
        return ""
    return f"no such key{did_you_mean(str(error.full_key), {*names(RunConfig()), *groups(CONF)})}"


def _was_reading(error: Exception) -> bool:
    """Whether Hydra was reading a config, not running what it says: then whatever failed is the config's fault."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(isinstance(frame.f_locals.get("self"), ConfigLoader | OverridesParser) for frame, _ in frames)


def _read_last(error: Exception) -> str:
    """The file that Hydra was at, as the beginning of a message: its own often leave it out."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        file = frame.f_locals.get("config_path")
        if isinstance(file, str) and not Path(file).is_absolute():
            return f"{file}.yaml: "
    return ""


def sweep_group(group: str | None, sweep_dir: str) -> str:
    """What the runs of a sweep are called together: ``group`` if that was set, else as the sweep's directory."""
    return group or Path(sweep_dir).absolute().name


def note_origin(config: RunConfig) -> RunConfig:
    """Write into ``config.tracking`` what the command line changed and, in a sweep, which of its runs this is."""
    origin = HydraConfig.get()
    config.tracking.overrides = [one for one in origin.overrides.task if not one.startswith(SET_BY_SWEEP)]
    if origin.mode == RunMode.MULTIRUN:
        config.tracking.group = sweep_group(config.tracking.group, origin.sweep.dir)
        config.tracking.job_number = origin.job.num
    return config


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(composed: DictConfig) -> float:
    """Run one job. A mistake of the user's ends it with one clear line, not with a stack trace.

    Gives Hydra, and so the sweepers that maximize something, the accuracy on held-out prompts after RL.
    """
    from ring_ray.launch import USER_ERRORS, launch  # takes seconds, which --help and a mistake need not wait for

    try:
        return launch(note_origin(to_run_config(composed)))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)  # what shells expect after SIGINT


def main() -> None:
    """What jobs/train.py does: one run, or with -m a sweep."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come here, not to its own way of printing them
    try:
        _run()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        sys.exit(1)
    except Exception as error:
        if not (mistake := _was_reading(error)) and not isinstance(error, HydraException):
            raise
        print(f"error: {_explained(error, sys.argv[1:] if mistake else ())}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if mistake else 1)  # a sweep with a failed job ends with a HydraException as well


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more, as in ``--help | head``; what is left is then thrown away."""
    reader = select.poll()
    reader.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in reader.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
