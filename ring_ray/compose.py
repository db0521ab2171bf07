"""From the command line to a `RunConfig`: the only file that knows Hydra."""

import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ring_ray.config import ConfigError, RunConfig
from ring_ray.launch import USER_ERRORS, launch

CONF = Path(__file__).parents[1] / "conf"

ConfigStore.instance().store(name="schema", node=RunConfig)


def to_run_config(composed: DictConfig) -> RunConfig:
    """Check a composed config. Raises `ConfigError` naming the key."""
    try:
        config = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, AttributeError) as error:  # a key that the schema does not have
        raise ConfigError(str(error).replace("\n", " ").strip()) from error
    assert isinstance(config, RunConfig)  # the schema is the first of config.yaml's defaults
    return config


def composed(overrides: list[str]) -> RunConfig:
    """The config that `jobs/train.py` would run with ``overrides``. Raises `ConfigError`."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            # Hydra names the run's directory when it runs something.
            return to_run_config(hydra.compose("config", overrides=["run_dir=outputs", *overrides]))
    except HydraException as error:
        raise ConfigError(str(error)) from error


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(composed: DictConfig) -> None:
    """Run one job. A mistake of the user's ends it with one clear line, not with a stack trace."""
    try:
        launch(to_run_config(composed))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)  # what shells expect after SIGINT
