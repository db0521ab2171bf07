"""Every file of conf/ composes, alone and together; what the schema doesn't have is refused."""

import re
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from ring_ray.compose import CONF, to_run_config
from ring_ray.config import ConfigError, RunConfig

OWN_GPUS = [f"cluster.{role}.gpus=1" for role in ("policy", "rollout", "reference")]


def composed(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_run_config(compose("config", overrides=["run_dir=somewhere", *overrides]))


def names(group: str) -> list[str]:
    return sorted(path.stem for path in Path(CONF, group).glob("*.yaml"))


NEEDED = {("jsonl",): ["data.path=problems.jsonl"], ("ring_lite", "disaggregated"): OWN_GPUS}


@pytest.mark.parametrize(
    ("algo", "data", "cluster", "experiment"), list(product(*map(names, ("algo", "data", "cluster", "experiment"))))
)
def test_every_combination_composes(algo: str, data: str, cluster: str, experiment: str) -> None:
    chosen = {"algo": algo, "data": data, "cluster": cluster, "experiment": experiment}
    needed = [one for case, overrides in NEEDED.items() if {*case} <= {*chosen.values()} for one in overrides]
    config = composed(*(f"{group}={name}" for group, name in chosen.items()), *needed)
    assert (config.algo.name, config.data.source, config.cluster.name) == (algo, data, cluster)
    for key, value in OmegaConf.load(CONF / "algo" / f"{algo}.yaml").items():
        assert getattr(config.algo, key) == pytest.approx(value), f"the experiment overrides algo.{key}"


def test_the_command_lines_of_the_documentation() -> None:
    config = composed("algo.token_budget=4096", "seed=1", "model.path=my-model", "data=jsonl", "data.path=f.jsonl")
    assert (config.algo.token_budget, config.seed, config.model.path) == (4096, 1, "my-model")
    assert composed("algo=grpo").algo.groups_per_step > 0


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigCompositionException, match="nope"):
        composed("algo.nope=1")
    with pytest.raises(ConfigError, match="nope"):
        composed("+algo.nope=1")


@pytest.mark.parametrize(
    "override",
    [
        "algo.token_budget=0",
        "algo.group_size=1",
        "algo.clip_range=1.5",
        "algo.cutoff=never",
        "algo.kl_coefficient=-1",
        "data.eval_fraction=1.0",
        "model.dtype=int8",
        "rollout.temperature=0.0",
        "train.steps=0",
        "train.zero_stage=4",
        "cluster.buffer.workers=2",
        "cluster.policy.workers=0",
        "cluster.reward.cpus=0.0",
        "cluster.policy.gpus=0.5",
        "rollout.top_p=0.9",
        "rollout.max_batched_tokens=8",
        "sft.learning_rate=-1.0",
        "tracking.wandb=maybe",
        "seed=-1",
    ],
)
def test_a_bad_value_is_refused_by_key_and_value(override: str) -> None:
    key, value = override.split("=")
    with pytest.raises(ConfigError) as refused:
        composed(override)
    assert key.rpartition(".")[2] in str(refused.value)
    assert value in str(refused.value)


def test_bfloat16_needs_zero() -> None:
    with pytest.raises(ConfigError, match=r"train\.zero_stage=0"):
        composed("model.dtype=bfloat16", "train.zero_stage=0")


def test_a_share_of_a_gpu_for_each_engine_means_cuda() -> None:
    shares = [f"cluster.{role}.gpus=0.3" for role in ("policy", "rollout", "reference")]
    assert composed(*shares).cluster.device == "cuda"
    assert composed().cluster.device == "cpu"
    with pytest.raises(ConfigError, match=r"cluster\.reference\.gpus=0\.0"):
        composed("algo.kl_coefficient=0.1", *shares[:2])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["cluster=disaggregated", "cluster.policy.gpus=0.5", "cluster.rollout.gpus=1"], "cluster.policy.gpus=0.5"),
        (["cluster=disaggregated", "rollout.tensor_parallel=2", *OWN_GPUS], "cluster.rollout.gpus=1"),
        (["cluster=disaggregated", *OWN_GPUS[:1], "cluster.rollout.gpus=2"], "cluster.rollout.gpus=2"),
        (["cluster=colocated", *OWN_GPUS], "cluster.colocate"),
        (["cluster=colocated", "cluster.policy.gpus=0.5", "cluster.rollout.gpus=0.5"], "sync.transport"),
        (["cluster=colocated", "sync.transport=ipc", "cluster.rollout.workers=2"], "sync.transport"),
        (["cluster=disaggregated", "sync.transport=ipc"], "sync.transport"),
        (["algo.objective=likelihood"], "algo.objective"),
        (["cluster=colocated", "cluster.overlap=true"], "cluster.take_turns"),
        (["algo.correction=icepop"], "algo.correction"),
        (["train.offload_parameters=true"], "train.offload_parameters"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], key: str) -> None:
    without_reference = ["algo.kl_coefficient=0"]
    transport = ["sync.transport=broadcast"] if overrides[-1] == "cluster.rollout.gpus=0.5" else []
    with pytest.raises(ConfigError, match=re.escape(key)):
        composed(*without_reference, *overrides, *transport)


@pytest.mark.parametrize(
    ("overrides", "transport"),
    [
        ([], "object_store"),
        (["cluster=colocated"], "ipc"),
        (["cluster=colocated", "cluster.rollout.workers=2"], "object_store"),
        (["cluster=disaggregated"], "broadcast"),
        (["cluster=disaggregated", "sync.transport=disk"], "disk"),
    ],
)
def test_auto_is_the_transport_that_fits_the_cluster(overrides: list[str], transport: str) -> None:
    assert composed(*overrides).transport == transport


def test_jsonl_without_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.path"):
        composed("data=jsonl")
