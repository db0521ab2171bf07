"""How fast new weights reach the rollout engine: each way, by model size, against a plain copy in memory.

    python -m tests.benchmarks.bench_sync [--widths 128 512 1024 2048] [--rounds 5] [--bucket-mib 256]

The real thing: DeepSpeed in one Ray actor, vLLM in another, from the first parcel asked for until the engine accepts
work again. The ways take turns. The copy is of as many bytes from one buffer into another by torch, in this process.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import replace

import ray
import torch

from ring_ray.actors.cluster import ray_session
from ring_ray.actors.policy import PolicyGang, PolicyWorker
from ring_ray.actors.rollout import RolloutPool, RolloutWorker
from ring_ray.config import RolloutConfig, RunConfig, SyncConfig
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.sync import WeightSync
from tests.integration.fleets import make_fleet

TRANSPORTS = ("object_store", "ipc", "broadcast", "disk")
LAYERS = {128: 2, 512: 8, 1024: 12, 2048: 16}


class AnyTransportPolicy(PolicyWorker):
    @ray.method
    def use(self, transport: str) -> None:
        self._config = replace(self._config, sync=replace(self._config.sync, transport=transport))
        self._transport = self._make_transport()


def copy_seconds(nbytes: int, rounds: int) -> float:
    source, target = (torch.zeros(nbytes, dtype=torch.uint8) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def transfer_seconds(config: RunConfig, model_path: str, rounds: int) -> dict[str, float]:
    """Median of a whole transfer, for each transport."""
    policy = make_fleet(AnyTransportPolicy, "policy rank", config, "cpu", 0)
    rollout = make_fleet(RolloutWorker, "rollout engine", model_path, config, "cpu", 0, max_concurrency=100)
    gang, pool = PolicyGang(policy), RolloutPool(rollout, "object_store")
    sync = WeightSync(gang, pool, verify=False, take_turns=False)
    seconds: dict[str, list[float]] = {name: [] for name in TRANSPORTS}
    try:
        await gang.start(model_path, config.train, config.algo)
        for version in range(rounds + 1):
            for name in TRANSPORTS:
                await policy[0].use.remote(name)
                await sync.rest()
                started = time.perf_counter()
                await sync.transfer(version)
                seconds[name].append(time.perf_counter() - started)
    finally:
        await pool.close()
        for fleet in (policy, rollout):
            fleet.end()
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warms up


def compare(width: int, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model_path = f"{folder}/model"
        parameters = make_tiny_model(model_path, seed=0, hidden_size=width, layers=LAYERS.get(width, 16))
        nbytes = 4 * parameters
        config = RunConfig(
            run_dir=folder,
            rollout=RolloutConfig(max_sequences=1, max_batched_tokens=128, kv_cache_mib=512),
            sync=SyncConfig(bucket_mib=args.bucket_mib),
        )
        copy = copy_seconds(nbytes, args.rounds)
        print(f"{parameters / 1e6:.1f} M parameters, {nbytes / 1e6:.0f} MB; a copy: {nbytes / copy / 1e6:.0f} MB/s")
        found = asyncio.run(transfer_seconds(config, model_path, args.rounds))
        for name, seconds in found.items():
            print(
                f"  {name:<14}{seconds:>8.3f} s {nbytes / seconds / 1e6:>7.0f} MB/s {seconds / copy:>8.1f} x a copy",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=list(LAYERS), help="hidden sizes of the models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, default=256)
    args = parser.parse_args()
    with ray_session(RunConfig().cluster):
        for width in args.widths:
            compare(width, args)


if __name__ == "__main__":
    main()
