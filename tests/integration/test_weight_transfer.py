"""New weights on their way into `VllmEngine`, by every transport, into one process or two that share the model.

The policies have one key and value head, of which each of two ranks holds a copy.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ring_ray.config import ModelConfig
from ring_ray.engines.transports import ObjectStore, make_transport
from ring_ray.engines.vllm import VllmEngine
from ring_ray.engines.vllm_worker import WeightReceiver
from ring_ray.engines.weights import NamedTensors, Parcel, Transport, checksum, parcels
from tests.conftest import Run
from tests.integration.policies import ROLLOUT, Policy, generate_all, load, starts

SMALL_BUCKET = 1 << 16  # bytes; the embeddings are larger


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    return tuple(Policy(tmp_path_factory.mktemp("policy"), seed, num_key_value_heads=1) for seed in (0, 1))


@pytest.fixture(scope="module", params=[1, 2], ids=["TP=1", "TP=2"])
def ranks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def engine(policies: tuple[Policy, Policy], run: Run, ranks: int) -> Iterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # lets a test change what a rank holds
        rollout = replace(ROLLOUT, tensor_parallel=ranks)
        engine = VllmEngine(policies[0].path, ModelConfig(), rollout, "cpu", seed=0)
        yield engine
        run(engine.close())


def checksums_of(weights: dict[str, Tensor]) -> dict[str, str]:
    return {name: checksum(tensor) for name, tensor in weights.items()}


def differing(found: dict[str, str], expected: dict[str, str]) -> set[str]:
    assert found.keys() == expected.keys()
    return {name for name, value in expected.items() if found[name] != value}


async def send(
    engine: VllmEngine, weights: NamedTensors, transport: Transport, name: str, bucket_bytes: int = SMALL_BUCKET
) -> list[Parcel]:
    sent = []
    for parcel in parcels(weights, transport, name, bucket_bytes):
        await engine.receive(parcel)
        sent.append(parcel)
    return sent


@pytest.mark.parametrize("name", ["object_store", "ipc", "broadcast", "disk"])
def test_weights_arrive_bit_by_bit_in_small_buckets(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run, ranks: int, tmp_path: Path, name: str
) -> None:
    """Twice over the same transport, from one policy to the other and back."""
    transport = make_transport(name, address="127.0.0.1", processes=ranks, directory=tmp_path / "weights")
    transport.open(["engine"])
    for policy in reversed(policies):
        sent = run(send(engine, policy.weights.items(), transport, name))
        sizes = [(parcel.layout[-1].stop, len(parcel.layout)) for parcel in sent]
        assert len(sent) > 5
        assert all(size <= SMALL_BUCKET or tensors == 1 for size, tensors in sizes)
        assert run(engine.checksums()) == checksums_of(policy.weights)
        run(engine.resume(version=1))
        for sequence in run(generate_all(engine, starts(4))):
            np.testing.assert_allclose(sequence.logprobs, policy.logprobs(sequence), atol=1e-4)


def test_checksums_tell_dtypes_apart(engine: VllmEngine, policies: tuple[Policy, Policy], run: Run) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in policies[1].weights.items()}
    mixed = halves | {name: tensor for name, tensor in policies[1].weights.items() if "norm" in name}
    run(load(engine, mixed.items(), version=1))
    found = run(engine.checksums())
    assert found == checksums_of(mixed)
    assert differing(found, checksums_of(halves)) == {name for name in mixed if "norm" in name}


def flip_lowest_bit(worker: Any, parameter: str, rank: int) -> None:
    """Of the parameter's last element, on one rank."""
    if worker.rank == rank:
        tensor = dict(worker.model_runner.get_model().named_parameters())[parameter]
        tensor.data.view(torch.int32).flatten()[-1] ^= 1


@pytest.mark.parametrize(
    ("parameter", "tensor"),
    [
        ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("model.layers.1.mlp.experts.routed_experts.w13_weight", "model.layers.1.mlp.experts.7.up_proj.weight"),
        ("model.layers.1.mlp.experts.routed_experts.w2_weight", "model.layers.1.mlp.experts.7.down_proj.weight"),
        ("model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_one_wrong_bit_in_what_one_rank_holds_is_found(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run, ranks: int, parameter: str, tensor: str
) -> None:
    """Also where the other rank has a copy that is right."""
    weights = policies[1].weights
    expected = checksums_of(weights)
    run(load(engine, weights.items(), version=1))
    for rank in range(ranks):
        run(engine._llm.collective_rpc(flip_lowest_bit, args=(parameter, rank)))
        assert differing(run(engine.checksums()), expected) == {tensor}
        run(engine._llm.collective_rpc(flip_lowest_bit, args=(parameter, rank)))
    assert run(engine.checksums()) == expected


def test_a_lost_bucket_is_found(engine: VllmEngine, policies: tuple[Policy, Policy], run: Run) -> None:
    weights = policies[1].weights

    async def lose() -> set[str]:
        lost: set[str] = set()
        for number, parcel in enumerate(parcels(weights.items(), ObjectStore(), "object_store", SMALL_BUCKET)):
            if number == 3:
                lost = {spec.name for spec in parcel.layout}
            else:
                await engine.receive(parcel)
        return lost

    lost = run(lose())
    expected = {name: value for name, value in checksums_of(weights).items() if name not in lost}
    assert lost
    assert run(engine.checksums()) == expected
    with pytest.raises(ValueError, match="weights lack"):
        run(engine.resume(version=1))


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("model.norm.weight", r"model\.norm\.weight \(0 of 64 elements\)"),
        (
            "model.layers.1.mlp.experts.3.up_proj.weight",
            r"layers\.1\.mlp\.experts\.\S*w13_weight \(\d+ of \d+ ele",
        ),
        ("model.layers.0.self_attn.k_proj.weight", r"layers\.0\.self_attn\.qkv_proj\.weight \(\d+ of \d+ elements\)"),
    ],
)
def test_incomplete_weights_are_refused_and_the_engine_stays_interrupted(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run, lost: str, named: str
) -> None:
    weights, version = policies[1].weights, engine.version
    with pytest.raises(ValueError, match=named):
        run(load(engine, ((name, tensor) for name, tensor in weights.items() if name != lost), version + 1))
    with pytest.raises(RuntimeError, match="some of the new weights"):
        run(engine.resume())
    sequence = starts(1)[0]
    assert run(engine.generate(sequence)) is sequence
    assert engine.version == version


def test_a_transfer_that_broke_off_can_begin_anew(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    """What was received before does not count: the second transfer has to be complete by itself."""
    weights = dict(policies[1].weights)
    name, wrong = "model.norm.weight", torch.ones(3)
    with pytest.raises(RuntimeError, match="Attempted to load weight"):
        run(load(engine, (weights | {name: wrong}).items(), version=1))
    del weights[name]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"model\.norm\.weight"):
            run(load(engine, weights.items(), version=1))
    run(load(engine, policies[1].weights.items(), version=1))
    (sequence,) = run(generate_all(engine, starts(1)))
    np.testing.assert_allclose(sequence.logprobs, policies[1].logprobs(sequence), atol=1e-4)


def test_a_version_without_weights_is_refused(engine: VllmEngine, run: Run) -> None:
    with pytest.raises(ValueError, match="no weights were received"):
        run(engine.resume(version=7))


class FusedExperts(nn.Module):
    """Loads each expert into its row of one parameter, and one of them wrongly where it is told to."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.fused = nn.Parameter(torch.zeros(3, 8))
        self.register_buffer("offset", torch.zeros(2))

    def load_weights(self, weights: NamedTensors) -> None:
        for name, tensor in weights:
            if name == "offset":
                self.offset.copy_(tensor)
                continue
            row = self.fused.data[int(name)]
            if name == "1" and self.mistake == "a part":
                row[:5].copy_(tensor[:5])
            elif name == "1" and self.mistake == "the order":
                row.copy_(tensor)
                row[6:].copy_(tensor[6:].flip(0).clone() if tensor.is_floating_point() else tensor[6:])
            elif not (name == "1" and self.mistake == "all"):
                row.copy_(tensor)


@pytest.fixture(scope="module")
def alone() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("mistake", ["none", "a part", "the order", "all"])
def test_what_the_loader_of_the_model_misplaces_is_found(alone: dist.ProcessGroup, mistake: str) -> None:
    weights = {name: torch.randn(8) for name in "012"} | {"offset": torch.randn(2).bfloat16()}
    receiver = WeightReceiver(FusedExperts(mistake), torch.device("cpu"), alone)
    sent = list(parcels(weights.items(), ObjectStore(), "object_store", SMALL_BUCKET))
    receiver.receive(sent[0], first=True)
    (layout,) = (parcel.layout for parcel in sent)
    found = receiver.checksums(layout)
    assert differing(found, checksums_of(weights)) == (set() if mistake == "none" else {"1"})
    missing = {"a part": 3, "all": 8}.get(mistake, 0)
    assert receiver.incomplete() == ([f"fused ({24 - missing} of 24 elements)"] if missing else [])
    if missing:
        assert found["1"] == f"{missing} elements missing or ambiguous"
