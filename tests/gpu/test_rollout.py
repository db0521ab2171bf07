"""`VllmEngine` on CUDA in bfloat16: log-probs, weights on their way in, and memory given back.

The router chooses every expert, so that rounding changes log-probs a little and never the experts.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ring_ray.config import ModelConfig
from ring_ray.engines.transports import make_transport
from ring_ray.engines.vllm import VllmEngine
from ring_ray.engines.weights import checksum, parcels
from ring_ray.types import Sequence
from tests.conftest import Run
from tests.integration.policies import ROLLOUT, Policy, generate_all, starts

SMALL_BUCKET = 1 << 16  # bytes
GPU_MEMORY_FRACTION = 0.2


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Policy]:
    sizes = {"num_experts": 8, "num_experts_per_tok": 8, "moe_intermediate_size": 64}
    return [Policy(tmp_path_factory.mktemp("policy"), seed, **sizes) for seed in (0, 1)]


@pytest.fixture(scope="module")
def engine(policies: list[Policy], run: Run) -> Iterator[VllmEngine]:
    rollout = replace(ROLLOUT, gpu_memory_fraction=GPU_MEMORY_FRACTION)
    model = ModelConfig(dtype="bfloat16")
    engine = VllmEngine(policies[0].path, model, rollout, "cuda", seed=0, replay_routing=True, sleeps=True)
    yield engine
    run(engine.close())


def assert_sampled_by(policy: Policy, other: Policy, sequences: list[Sequence]) -> None:
    for expected, is_near in ((policy, True), (other, False)):
        errors = np.concatenate([np.abs(s.logprobs - expected.rounded().logprobs(s)) for s in sequences])
        assert (errors.mean() < 0.1) == is_near  # the two policies are nats apart, bfloat16 some hundredths


def send(path: str, name: str, device: str, connection: Connection) -> None:
    """In a process of its own: a policy's weights from its GPU."""
    weights = {key: tensor.to(device, torch.bfloat16) for key, tensor in load_file(path).items()}
    transport = make_transport(name, address="127.0.0.1")
    transport.open(["engine"])
    for parcel in parcels(weights.items(), transport, name, SMALL_BUCKET):
        connection.send(parcel)
        connection.recv()
    connection.send(None)


async def receive_from_process(engine: VllmEngine, policy: Policy, name: str, device: str, version: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    sender = spawn.Process(target=send, args=(f"{policy.path}/model.safetensors", name, device, theirs), daemon=True)
    sender.start()
    theirs.close()  # so that a sender that fails ends the conversation
    while (parcel := ours.recv()) is not None:
        await engine.receive(parcel)
        ours.send("next")
    sender.join()
    expected = {key: checksum(tensor.bfloat16()) for key, tensor in policy.weights.items()}
    assert await engine.checksums() == expected
    await engine.resume(version)


def test_logprobs_are_near_those_of_transformers(engine: VllmEngine, policies: list[Policy], run: Run) -> None:
    run(receive_from_process(engine, policies[0], "object_store", "cuda:0", version=1))
    sequences = run(generate_all(engine, starts(24)))
    assert_sampled_by(policies[0], policies[1], sequences)
    for sequence in sequences:
        assert sequence.routed_experts is not None
        np.testing.assert_array_equal(np.sort(sequence.routed_experts, axis=-1), policies[0].routed_experts(sequence))


@pytest.mark.parametrize(("name", "device"), [("object_store", "cuda:0"), ("ipc", "cuda:0"), ("broadcast", "cuda:1")])
def test_weights_arrive_from_another_process(
    engine: VllmEngine, policies: list[Policy], run: Run, name: str, device: str
) -> None:
    if torch.device(device).index >= torch.cuda.device_count():
        pytest.skip("NCCL needs a GPU for the sender and another one for the engine")
    run(receive_from_process(engine, policies[0], "object_store", "cuda:0", version=1))
    run(receive_from_process(engine, policies[1], name, device, version=2))
    assert_sampled_by(policies[1], policies[0], run(generate_all(engine, starts(8))))


def test_sleep_gives_memory_back(engine: VllmEngine, policies: list[Policy], run: Run) -> None:
    run(engine.interrupt())
    awake, total = torch.cuda.mem_get_info()
    run(engine.interrupt(sleep=True))
    asleep, _ = torch.cuda.mem_get_info()
    assert asleep - awake > total * GPU_MEMORY_FRACTION / 2
    with pytest.raises(RuntimeError, match="the weights slept"):
        run(engine.resume())
    run(receive_from_process(engine, policies[1], "ipc", "cuda:0", version=2))
    again, _ = torch.cuda.mem_get_info()
    assert asleep - again > total * GPU_MEMORY_FRACTION / 2
    assert_sampled_by(policies[1], policies[0], run(generate_all(engine, starts(8))))
