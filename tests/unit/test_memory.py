"""The memory plan against transformers, autograd, PyTorch's own allocator, and sums done by hand."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import (
    GraniteMoeSharedConfig,
    GraniteMoeSharedForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ring_ray.algo.logprobs import token_logprobs
from ring_ray.compose import composed
from ring_ray.config import (
    AlgoConfig,
    ClusterConfig,
    ConfigError,
    ModelConfig,
    RoleResources,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from ring_ray.engines.attention import VARLEN
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.memory import (
    GIB,
    LOGITS_CHUNK,
    ModelShape,
    Row,
    check_memory,
    devices,
    memory_plan,
    model_shape,
    shape_of,
    table,
    total,
)

BILLION = 1_000_000_000
SHAPE = ModelShape(
    parameters=BILLION,
    active_parameters=BILLION,
    persistent_parameters=0,
    largest_parameter=100_000_000,
    largest_module=200_000_000,
    layers=10,
    hidden=1000,
    vocabulary=50_000,
    cached_elements=10_000,
    saved_elements=200_000,
    saved_float32=20_000,
)
GPU = 80 * GIB


def run_config(ranks: int, *, take_turns: bool = False, kl: float = 0.0, **train: Any) -> RunConfig:
    role = RoleResources(workers=ranks, gpus=0.3)
    return RunConfig(
        model=ModelConfig(dtype="bfloat16"),
        algo=AlgoConfig(kl_coefficient=kl),
        rollout=RolloutConfig(max_prompt_tokens=1000, max_response_tokens=3000, max_sequences=10),
        train=TrainConfig(micro_batch_tokens=4000, **train),
        cluster=ClusterConfig(take_turns=take_turns, overlap=not take_turns, policy=role, rollout=role, reference=role),
    )


def held(config: RunConfig, phase: str, role: str, shape: ModelShape = SHAPE) -> dict[str, float]:
    rows = memory_plan(config, shape, GPU)
    return {row.part.name: row.part.nbytes for row in rows if (row.phase, row.role) == (phase, role)}


def test_the_shape_of_ring_lite_has_the_papers_parameters() -> None:
    shape = model_shape("docs/ring-lite", ModelConfig(dtype="bfloat16"))
    attention, expert = 2048 * 128 * (16 + 4 + 4 + 16), 3 * 2048 * 1408
    layer = attention + 2 * expert + 64 * 2048 + 2 * 2048  # with shared experts, router and norms
    outside = 2 * 126_464 * 2048 + 2048
    assert shape.parameters == 28 * (layer + 64 * expert) + outside == pytest.approx(16.8e9, rel=0.01)
    assert shape.active_parameters == 28 * (layer + 6 * expert) + outside == pytest.approx(2.75e9, rel=0.01)
    assert shape.largest_module == 64 * expert + 64 * 2048
    assert shape.cached_elements == 28 * 2 * 4 * 128


def test_a_shape_needs_no_weights(tmp_path: Path) -> None:
    parameters = make_tiny_model(tmp_path, seed=0)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    assert model_shape(str(tmp_path), ModelConfig()).parameters == parameters


SIZES: dict[str, Any] = {"vocab_size": 2048, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def granite(layers: int) -> PreTrainedModel:
    sizes = {"intermediate_size": 88, "shared_intermediate_size": 176, "num_local_experts": 8, "num_experts_per_tok": 3}
    return GraniteMoeSharedForCausalLM(GraniteMoeSharedConfig(num_hidden_layers=layers, **sizes, **SIZES))


def qwen_moe(layers: int) -> PreTrainedModel:
    sizes = {"moe_intermediate_size": 88, "num_experts": 8, "num_experts_per_tok": 3, "head_dim": 32}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(num_hidden_layers=layers, **sizes, **SIZES))


def qwen_dense(layers: int) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=layers, intermediate_size=384, head_dim=32, **SIZES))


def saved_bytes(model: PreTrainedModel, tokens: int) -> int:
    """What autograd keeps of a forward pass, parameters aside."""
    model.eval().set_attn_implementation(VARLEN)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False, logits_to_keep=1)
    del outputs
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [granite, qwen_moe, qwen_dense])
def test_layers_keep_no_more_than_planned(build: Callable[[int], PreTrainedModel], dtype: torch.dtype) -> None:
    tokens, models = 64, [build(layers).to(dtype) for layers in (1, 3)]
    one, three = (saved_bytes(model, tokens) for model in models)
    shapes = [shape_of(model) for model in models]
    planned = [tokens * (dtype.itemsize * shape.saved_elements + 4 * shape.saved_float32) for shape in shapes]
    assert three - one <= planned[1] - planned[0] <= 1.25 * (three - one)


def peak_bytes(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    held, peak = 0, 0
    for _, nbytes in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += nbytes
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_take_no_more_than_planned(dtype: str) -> None:
    tokens, vocabulary = 4096, 512
    logits_NV = torch.randn(tokens, vocabulary, dtype=getattr(torch, dtype), requires_grad=True)
    targets_N = torch.zeros(tokens, dtype=torch.int64)

    def work() -> None:
        logprobs_N, entropies_N = token_logprobs(logits_NV * 1, targets_N, 1.0)
        (logprobs_N.sum() + entropies_N.sum()).backward()

    config = run_config(2, zero_stage=3, activation_checkpointing=True)
    config = replace(config, model=ModelConfig(dtype=dtype), train=replace(config.train, micro_batch_tokens=tokens))
    bare = replace(SHAPE, parameters=0, largest_parameter=0, largest_module=0, saved_elements=0, saved_float32=0)
    planned = held(config, "update", "policy", replace(bare, vocabulary=vocabulary))["logits"]
    peak = peak_bytes(work)
    assert peak <= planned <= 2 * peak


def test_chunks_of_logits_are_as_long_as_the_loss_has_them() -> None:
    assert inspect.signature(token_logprobs).parameters["chunk_tokens"].default == LOGITS_CHUNK


@pytest.mark.parametrize(
    ("stage", "ranks", "weights", "gradients", "optimizer"),
    [(1, 1, 2, 4, 12), (1, 4, 2, 4, 3), (2, 4, 2, 0, 3), (3, 1, 2, 4, 12), (3, 4, 0.5, 1, 3)],
)
def test_zero_shards_what_it_says(stage: int, ranks: int, weights: float, gradients: float, optimizer: float) -> None:
    parts = held(run_config(ranks, zero_stage=stage), "sync", "policy")
    assert parts["weights"] == weights * BILLION
    assert parts.get("summed gradients", 0) == gradients * BILLION
    assert parts["master weights and Adam"] == optimizer * BILLION


def test_what_is_offloaded_waits_on_the_host() -> None:
    config = run_config(4, zero_stage=3, offload_optimizer=True, offload_parameters=True)
    assert {"weights", "summed gradients", "master weights and Adam"}.isdisjoint(held(config, "update", "policy"))
    waiting = held(config, "host", "policy")
    assert waiting["master weights and Adam"] == 3 * BILLION
    assert waiting["weights"] == 0.5 * BILLION


def test_checkpointing_keeps_inputs_of_layers() -> None:
    def activations(checkpointing: bool) -> float:
        config = run_config(4, zero_stage=3, activation_checkpointing=checkpointing)
        return held(config, "update", "policy")["activations"]

    assert activations(True) == 4000 * 10 * 1000 * 2
    assert activations(False) == 4000 * (200_000 * 2 + 20_000 * 4)


def test_the_cache_is_what_vllm_has_left() -> None:
    parts = held(run_config(4), "generate", "rollout")
    work = 2048 * (200_000 * 2 + 20_000 * 4) / 10 + 3 * 4 * 10 * 50_000
    cache = 0.4 * GPU - 2 * BILLION - work
    assert parts[f"KV cache ({cache / (4000 * 10_000 * 2):.1f} full sequences)"] == pytest.approx(cache)
    with pytest.raises(ConfigError, match=r"gpu_memory_fraction=0\.4"):
        memory_plan(run_config(4), SHAPE, 5 * GIB)


def test_who_takes_turns_leaves_the_gpu() -> None:
    resting = run_config(4, take_turns=True, kl=1e-3, zero_stage=3)
    assert not held(resting, "generate", "policy")
    assert not held(resting, "update", "reference")
    assert not held(resting, "update", "rollout")
    assert set(held(resting, "sync", "rollout")) == {"weights"}
    assert held(resting, "host", "reference") == {"weights": 2 * BILLION}
    together = run_config(4, kl=1e-3, zero_stage=3)
    assert held(together, "generate", "policy")
    assert held(together, "update", "reference")
    assert not held(together, "host", "reference")
    assert not held(run_config(4), "generate", "reference")


def test_colocated_roles_add_up_and_others_do_not() -> None:
    config = run_config(4, kl=1e-3)
    rows = memory_plan(config, SHAPE, GPU)
    assert [who for phase, who in devices(config, rows) if phase == "update"] == ["all roles"]
    whole = RoleResources(workers=4, gpus=1)
    apart = replace(
        config, cluster=replace(config.cluster, colocate=False, policy=whole, rollout=whole, reference=whole)
    )
    assert [who for phase, who in devices(apart, rows) if phase == "update"] == ["policy", "rollout", "reference"]


def test_what_does_not_fit_is_refused_with_what_would_help() -> None:
    config = run_config(1, zero_stage=3)
    rows = memory_plan(config, SHAPE, GPU)
    check_memory(config, rows, GPU)
    with pytest.raises(ConfigError, match=r"(?s)update needs .*train\.offload_optimizer=true") as refused:
        check_memory(config, rows, 30 * GIB)
    assert "host" not in str(refused.value)


def test_the_table_adds_up() -> None:
    config = run_config(4, take_turns=True, zero_stage=3)
    rows: tuple[Row, ...] = memory_plan(config, SHAPE, GPU)
    blocks = table(config, rows).partition("\n")[2].split("\n\n")
    assert [block.split()[0] for block in blocks] == ["generate", "update", "sync", "host"]
    for block, parts in zip(blocks, devices(config, rows).values(), strict=True):
        *lines, last = (float(line.split()[-1]) for line in block.splitlines())
        assert last == pytest.approx(sum(lines), abs=0.05)
        assert last == pytest.approx(total(row.part for row in parts) / GIB, abs=0.01)


def test_the_papers_setting_composes_and_fits() -> None:
    config = composed(["experiment=ring_lite"])
    assert (config.cluster.device, config.cluster.take_turns, config.transport) == ("cuda", True, "ipc")
    assert config.algo.token_budget == config.cluster.policy.workers * 409_600
    assert config.rollout.max_prompt_tokens + config.rollout.max_response_tokens == 24_576
    assert config.rollout.max_sequences * config.cluster.rollout.workers == 512 * config.algo.group_size
    assert config.model.path is not None
    rows = memory_plan(config, model_shape(config.model.path, config.model), GPU)
    check_memory(config, rows, GPU)
    together = composed(["experiment=ring_lite", "cluster=local"])
    rows = memory_plan(together, model_shape(config.model.path, config.model), GPU)
    with pytest.raises(ConfigError, match="generate needs"):
        check_memory(together, rows, GPU)


def test_the_documentation_shows_what_the_command_prints() -> None:
    config = composed(["experiment=ring_lite"])
    rows = memory_plan(config, model_shape("docs/ring-lite", config.model), GPU)
    assert table(config, rows) in Path("docs/ray-cluster.md").read_text()


def test_a_mistake_in_an_override_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="nope"):
        composed(["algo.nope=1"])
    with pytest.raises(ConfigError, match="experiment"):
        composed(["experiment=nope"])
