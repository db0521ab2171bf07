"""What the tests of training share: batches as the buffer makes them, engines, and ranks as processes."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from ring_ray.config import AlgoConfig, ModelConfig, TrainConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.types import FloatArray, Segment, TokenBatch
from tests.unit.test_packing import make_batch, make_segment, make_sequence

TEMPERATURE, MICRO_BATCH_TOKENS, MAX_GRAD_NORM, LEARNING_RATE = 0.9, 60, 0.01, 1e-3
STEPS, TOKEN_BUDGET = 5, 60
ALGO = AlgoConfig(kl_coefficient=0.05, entropy_coefficient=0.01, balance_coefficient=0.1, z_coefficient=0.01)

VARIANTS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-1, padded": {"zero_stage": 1, "packing": "padded"},
    "ZeRO-1, checkpointed": {"zero_stage": 1, "activation_checkpointing": True},
    "ZeRO-3, checkpointed": {"zero_stage": 3, "activation_checkpointing": True},
    "ZeRO-2, optimizer on the host": {"zero_stage": 2, "offload_optimizer": True},
    "ZeRO-3, parameters on the host": {"zero_stage": 3, "offload_parameters": True},
    "ZeRO-3, all on the host": {"zero_stage": 3, "offload_parameters": True, "offload_optimizer": True},
}


def batches() -> list[TokenBatch]:
    """Steps of exactly Φ tokens from a stream of responses: each cuts its last one, of which the next has the rest.

    One response is so long that it fills a whole step.
    """
    rng = np.random.default_rng(0)
    lengths = [6, 13, 19, 19, 110, 8, 34, 27, 33, 7, 26, 13]
    stream = [
        make_segment(make_sequence(rng, int(rng.integers(3, 10)), length, 256), 0, length, float(rng.normal()))
        for length in lengths
    ]
    return [make_batch(_take(stream, TOKEN_BUDGET)) for _ in range(STEPS)]


def _take(stream: list[Segment], tokens: int) -> list[Segment]:
    taken = []
    while tokens > 0:
        head = replace(stream[0], stop=min(stream[0].stop, stream[0].start + tokens))
        taken.append(head)
        tokens -= len(head)
        stream[:1] = [replace(head, start=head.stop, stop=stream[0].stop)] if head.stop < stream[0].stop else []
    return taken


def references(batch: TokenBatch) -> tuple[FloatArray, ...]:
    """A reference policy that is somewhat less likely to say what was said than the one that sampled it."""
    return tuple(s.sequence.logprobs[s.start : s.stop] - np.float32(0.1) for s in batch.segments)


def make_engine(
    path: str,
    rank: int = 0,
    ranks: int = 1,
    port: int = 0,
    *,
    algo: AlgoConfig = ALGO,
    dtype: str = "float32",
    device: str = "cpu",
    **train: Any,
) -> DeepSpeedEngine:
    """``train`` are values of `TrainConfig` other than those of the tests."""
    usual = {
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 2,
        "max_grad_norm": MAX_GRAD_NORM,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
    }
    return DeepSpeedEngine(
        path,
        model=ModelConfig(dtype=dtype),
        train=TrainConfig(**(usual | train)),
        algo=algo,
        temperature=TEMPERATURE,
        device=device,
        rank=rank,
        world_size=ranks,
        master_port=port,
    )


def run_ranks(function: Callable[..., dict[str, Any]], directory: str, *arguments: Any) -> dict[int, list[Any]]:
    """``function(*arguments, rank, ranks, port)`` in one process and, at the same time, in two: what each returned.

    By the number of ranks, in their order.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # The server that ranks are forks of has imported DeepSpeed, which takes seconds, once for all of them.
        multiprocessing.set_forkserver_preload([__name__])
        groups = [
            mp.start_processes(
                _rank, (function, directory, arguments, ranks, port), ranks, join=False, start_method="forkserver"
            )
            for ranks, port in [(1, 0), (2, free_port())]
        ]
    for group in groups:
        while not group.join():
            pass
    return {
        ranks: [torch.load(f"{directory}/{rank}-of-{ranks}", weights_only=False) for rank in range(ranks)]
        for ranks in (1, 2)
    }


def _rank(
    rank: int, function: Callable[..., Any], directory: str, arguments: tuple[Any, ...], ranks: int, port: int
) -> None:
    torch.set_num_threads(1)
    torch.save(function(*arguments, rank, ranks, port), os.path.join(directory, f"{rank}-of-{ranks}"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
