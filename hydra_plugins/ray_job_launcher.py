"""`hydra/launcher=ray_job`: every job of a Hydra sweep becomes a Ray job. docs/sweep.md tells how to use it."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ring_ray.compose import sweep_group, to_run_config
from ring_ray.config import ConfigError, RunConfig

if TYPE_CHECKING:
    from ring_ray.sweep import JobRecord, SweepJob


@dataclass
class RayJobLauncherConfig:
    _target_: str = "hydra_plugins.ray_job_launcher.RayJobLauncher"
    address: str | None = None  # of a running cluster's dashboard, http://HEAD:8265, or of the cluster as ray.init has
    # it; null takes RAY_ADDRESS, and where that is not set starts a cluster on this machine for the sweep's duration
    # directory that is uploaded for the jobs to run in, "." for this checkout; null lets them run in the current
    # directory, which every node must see under the same path
    working_dir: str | None = None
    python: str | None = None  # interpreter on the nodes; null is the one that runs the sweep
    max_parallel: int | None = None  # jobs at a time; null is as many as the cluster has room for
    poll_seconds: float = 2.0  # between two looks at the jobs


ConfigStore.instance().store(group="hydra/launcher", name="ray_job", node=RayJobLauncherConfig, provider="ring_ray")


class RayJobLauncher(Launcher):
    def __init__(self, python: str | None, working_dir: str | None, **options: Any) -> None:
        self._python, self._working_dir, self._options = python or sys.executable, working_dir, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader, self._config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ring_ray.sweep import launch_sweep  # Hydra imports this file whatever it is to do, and Ray takes seconds

        setup_globals()
        made = [self._job(number, overrides) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        try:
            records = launch_sweep([job for job, _ in made], working_dir=self._working_dir, **self._options)
        except (ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)  # noqa: T201
            sys.exit(130)
        return [_filled(returned, record) for record, (_, returned) in zip(records, made, strict=True)]

    def _job(self, number: int, overrides: Sequence[str]) -> "tuple[SweepJob, JobReturn]":
        """The job that is made by ``overrides``, and Hydra's account of it, still without a result."""
        from ring_ray.sweep import SweepJob, command

        own = tuple(filter_overrides(overrides))
        task, hydra_config = self._compose(number, overrides)
        hydra = hydra_config.hydra
        group = sweep_group(task.tracking.group, hydra.sweep.dir)
        given = [
            *_sources(hydra),
            *own,
            "hydra.mode=RUN",  # a config that asks for a sweep asked for this one
            f"hydra.run.dir={_quoted(hydra.runtime.output_dir)}",
            f"tracking.group={_quoted(group)}",
            f"tracking.job_number={number}",
        ]
        job = SweepJob(
            number=number,
            name=f"{group} {number}",
            overrides=own,
            directory=Path(hydra.runtime.output_dir),
            command=command(self._python, given, None if self._working_dir else Path.cwd()),
            config=_checked(task),
        )
        return job, JobReturn(overrides=own, cfg=task, hydra_cfg=hydra_config, task_name=hydra.job.name)

    def _compose(self, number: int, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        """The config of a run, resolved, and Hydra's own."""
        config = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # for interpolations such as ${hydra:job.num}
            directory = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(directory)
            HydraConfig.instance().set_config(config)
            task = copy.deepcopy(config)
            with open_dict(task):
                del task["hydra"]
            OmegaConf.resolve(task)
            hydra_config: Any = HydraConfig.instance().cfg
            return task, hydra_config
        finally:
            HydraConfig.instance().cfg = before


def _sources(hydra: Any) -> list[str]:
    """The arguments that have a run read the config files that the sweep was composed from."""
    directories = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [
        f"--config-name={hydra.job.config_name}",
        *(f"--config-dir={directory}" for directory in directories),
        *(override for override in hydra.overrides.hydra if override.startswith("hydra.searchpath=")),
    ]


def _checked(composed: DictConfig) -> RunConfig | ConfigError:
    try:
        return to_run_config(composed)
    except ConfigError as error:
        return error


def _filled(returned: JobReturn, record: "JobRecord") -> JobReturn:
    """A sweeper that optimizes gets the accuracy; one that does not ends with an error if a job failed."""
    from ring_ray.sweep import State, accuracy

    if record.state is State.FAILED:
        returned.status = JobStatus.FAILED
        returned.return_value = CompactHydraException(f"job {record.job.number} failed: {record.error}")
    else:
        returned.status = JobStatus.COMPLETED
        returned.return_value = accuracy(record.job.directory)
    return returned


def _quoted(text: str) -> str:
    """As a value in Hydra's syntax, where a comma would otherwise make it a choice."""
    return QuotedString(text, Quote.single).with_quotes()
