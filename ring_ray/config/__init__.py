"""The schema of a run: every key that `conf/` may set, its default, its meaning and its limits.

Plain dataclasses, no Hydra: `compose.py` turns composed YAML into a `RunConfig`, and a test or a notebook can build one
by hand. Values are checked where they are defined, so a bad one is refused before anything starts.
"""

from ring_ray.config.algo import AlgoConfig
from ring_ray.config.check import ConfigError, did_you_mean, require, require_one_of
from ring_ray.config.checkpoint import CheckpointConfig
from ring_ray.config.cluster import ClusterConfig, Device, RoleResources
from ring_ray.config.engines import ModelConfig, RolloutConfig, SyncConfig, TrainConfig
from ring_ray.config.guard import GuardConfig
from ring_ray.config.open_ended import EndpointConfig, JudgeConfig, LengthConfig, RewardModelConfig
from ring_ray.config.recovery import RecoveryConfig
from ring_ray.config.run import (
    WANDB_MODES,
    DataConfig,
    EvaluationConfig,
    RewardConfig,
    RunConfig,
    SftConfig,
    TrackingConfig,
)
from ring_ray.config.sandbox import SandboxConfig

__all__ = [
    "WANDB_MODES",
    "AlgoConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "Device",
    "EndpointConfig",
    "EvaluationConfig",
    "GuardConfig",
    "JudgeConfig",
    "LengthConfig",
    "ModelConfig",
    "RecoveryConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RoleResources",
    "RolloutConfig",
    "RunConfig",
    "SandboxConfig",
    "SftConfig",
    "SyncConfig",
    "TrackingConfig",
    "TrainConfig",
    "did_you_mean",
    "require",
    "require_one_of",
]
