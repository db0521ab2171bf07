"""Responses that no rule can judge: a reward model or a judge scores them between 0 and 1.

What a verifier needs is imported when it is made: the client of a server takes a second, and few runs have one.
"""

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import GroupVerifier


def judge_verifier(config: RewardConfig) -> GroupVerifier:
    """Raises `ConfigError` where the config names no judge, or a template that is none."""
    from ring_ray.rewards.open_ended.judge import Judge

    return Judge(config.judge, config.length)


def reward_model_verifier(config: RewardConfig) -> GroupVerifier:
    """Raises `ConfigError` where the config names no reward model, or one that is none."""
    from ring_ray.rewards.open_ended.reward_model import LocalRewardModel, ServedRewardModel

    make = LocalRewardModel if config.model.path else ServedRewardModel
    return make(config.model, config.length)
