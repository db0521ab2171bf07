"""What it means for a run to be a Ray job: `ray job submit` uploads the code, and stops a job by SIGTERM."""

import json
import os
import signal
from pathlib import Path
from types import FrameType

from ring_ray.config import ConfigError

COPIES = "working_dir_files"  # Ray keeps each node's copies of what was uploaded in a directory of this name
RUNTIME_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # that is the variable's name, not a placeholder


def submitted_variables() -> dict[str, str]:
    """The environment variables that this job was submitted with; none where it is no job."""
    submitted = json.loads(os.environ.get(RUNTIME_ENVIRONMENT, "{}"))
    return dict(submitted.get("runtime_env", {}).get("env_vars", {}))


def default_outputs() -> str:
    """The directory of runs that name none: ``outputs`` here, and for a job ``ring_ray/outputs`` in the home directory.

    Ray deletes a job's copy of the working directory, and with it what was written there.
    """
    return str(Path.home() / "ring_ray" / "outputs") if COPIES in Path.cwd().parts else "outputs"


def check_outlives_job(directory: Path, key: str = "hydra.run.dir") -> None:
    """Raises `ConfigError` that blames ``key`` where Ray would delete what the run writes."""
    if COPIES in directory.absolute().parts:
        raise ConfigError(
            f"{key}={directory}: Ray deletes the job's copy of the working directory; give an absolute path, "
            "on a cluster of several nodes one that all of them see"
        )


def end_on_sigterm() -> None:
    """Let SIGTERM do from now on what Ctrl-C does. To be called after ray.init, which has its own idea of it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)  # asyncio's while it runs
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    signal.signal(signal.SIGTERM, interrupt)
