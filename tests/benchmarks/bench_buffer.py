"""How fast tokens pass through the buffer and the controller, and what memory they need. No engine, no Ray.

Run with ``python -m tests.benchmarks.bench_buffer``. The load is the paper's (Ring-lite, arXiv 2506.14731): 512 prompts
x 16 responses of 12,800 tokens on average, taken 409,600 at a time and in one go. Every figure comes from a process of
its own, so that its peak memory is its own.
"""

import asyncio
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from ring_ray.algo.advantage import group_advantages
from ring_ray.buffer import RolloutBuffer
from ring_ray.config import AlgoConfig, RunConfig, TrainConfig
from ring_ray.controller import Controller
from ring_ray.roles import RolloutRef
from ring_ray.stream import RolloutStream
from ring_ray.sync import WeightSync
from ring_ray.types import Prompt, Reward, Rollout, RolloutStatus, Sequence, Verdict
from tests.unit.fakes import FakeCheckpoints, FakePolicy, FakePrompts, FakeReward, FakeRollout, LocalBuffer, StepList

PROMPTS, GROUP_SIZE, MEAN_LENGTH, MAX_LENGTH = 512, 16, 12_800, 32_768
TOKENS = PROMPTS * GROUP_SIZE * MEAN_LENGTH
BUDGETS = (409_600, TOKENS)
REPEATS = 3
HEADER = "buffer                    budget  takes     CPU s  tokens/s  payload MiB  peak/payload"


class Buffer(Protocol):
    def put(self, rollout: Rollout, rewards: tuple[Reward, ...]) -> None:
        """A group is finished and scored."""

    def take(self) -> int | None:
        """Train one batch; its tokens, or None where there are too few."""


class StreamingBuffer:
    """The one that is measured."""

    def __init__(self, token_budget: int) -> None:
        self.buffer = RolloutBuffer(AlgoConfig(token_budget=token_budget, group_size=GROUP_SIZE), seed=0)

    def put(self, rollout: Rollout, rewards: tuple[Reward, ...]) -> None:
        self.buffer.add(rollout)
        self.buffer.score(rollout.prompt.index, rewards)

    def take(self) -> int | None:
        return self.buffer.take()[0].trained_tokens if self.buffer.ready() else None


class ConcatenatingBuffer:
    """The naive peer: one flat array a field with the advantage repeated for every token; a batch is a slice of it.

    It joins what has arrived once a batch, not once a group. It keeps no order, versions or ledger, and a token that is
    carried has lost its prefix.
    """

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget
        self.queued = 0
        self.fields: list[list[np.ndarray]] = [[], [], [], []]

    def put(self, rollout: Rollout, rewards: tuple[Reward, ...]) -> None:
        advantages_K = group_advantages([reward.score for reward in rewards], 1e-6)
        for sequence, advantage in zip(rollout.sequences, advantages_K, strict=True):
            repeated = np.full(len(sequence), advantage, np.float32)
            arrays = (sequence.response_ids, sequence.logprobs, sequence.versions, repeated)
            for field, array in zip(self.fields, arrays, strict=True):
                field.append(array)
            self.queued += len(sequence)

    def take(self) -> int | None:
        if self.queued < self.token_budget:
            return None
        joined = [np.concatenate(field) if len(field) > 1 else field[0] for field in self.fields]
        batch = [array[: self.token_budget] for array in joined]
        self.fields = [[array[self.token_budget :]] for array in joined]
        self.queued -= self.token_budget
        return len(batch[0])


@dataclass(frozen=True, slots=True)
class Result:
    takes: int
    seconds: float  # of CPU: one thread that never waits, so that a busy machine tells in it least
    payload_bytes: int
    peak_bytes: int

    @staticmethod
    def of(load: list[Rollout], *, takes: int, seconds: float) -> "Result":
        """With the peak memory of this process so far."""
        payload_bytes = sum(
            array.nbytes
            for rollout in load
            for sequence in rollout.sequences
            for array in (sequence.response_ids, sequence.logprobs, sequence.versions)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Result(takes=takes, seconds=seconds, payload_bytes=payload_bytes, peak_bytes=peak)

    def row(self, name: str, token_budget: int) -> str:
        return (
            f"{name:<20} {token_budget:>11,} {self.takes:>6} {self.seconds:>9.4f} {TOKENS / self.seconds:>9.2e} "
            f"{self.payload_bytes / 2**20:>12.0f} {self.peak_bytes / self.payload_bytes:>13.3f}"
        )


def response_lengths() -> np.ndarray:
    """[PROMPTS, GROUP_SIZE], heavy-tailed, adding up to exactly TOKENS."""
    raw = np.minimum(np.random.default_rng(0).lognormal(sigma=0.8, size=PROMPTS * GROUP_SIZE), 3.0)
    ends = np.round(np.cumsum(raw) / raw.sum() * TOKENS).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    assert lengths.max() <= MAX_LENGTH
    return lengths.reshape(PROMPTS, GROUP_SIZE)


def rollouts() -> list[Rollout]:
    """The load, every page of it written, so that it counts as resident memory from the start."""
    generator = np.random.default_rng(1)
    prompt_ids = np.zeros(256, np.int32)

    def response(length: int) -> Sequence:
        return Sequence(
            prompt_ids=prompt_ids,
            response_ids=generator.integers(0, 150_000, length, np.int32),
            logprobs=np.full(length, -0.5, np.float32),
            versions=np.full(length, 0, np.int32),
            finish_reason="stop",
        )

    def prompt(index: int) -> Prompt:
        return Prompt(
            index=index, id=str(index), domain="math", text="", token_ids=prompt_ids, verifier="math", answer=""
        )

    return [
        Rollout(prompt=prompt(index), sequences=tuple(response(int(length)) for length in lengths))
        for index, lengths in enumerate(response_lengths())
    ]


def measure(implementation: Callable[[int], Buffer], token_budget: int) -> Result:
    """The load goes through once: each group is put, and every batch is taken as soon as it is there.

    The load outlives the measurement, so that freeing it is not counted as the buffer's time.
    """
    load = rollouts()
    right = Reward(score=1.0, verdict=Verdict.CORRECT, reason="")
    wrong = Reward(score=0.0, verdict=Verdict.WRONG, reason="")
    rewards = (right, wrong) * (GROUP_SIZE // 2)
    buffer = implementation(token_budget)
    takes = trained = 0
    started = time.process_time()
    for rollout in load:
        buffer.put(rollout, rewards)
        while tokens := buffer.take():
            takes, trained = takes + 1, trained + tokens
    seconds = time.process_time() - started
    assert trained == TOKENS
    return Result.of(load, takes=takes, seconds=seconds)


def in_fresh_process(measurement: Callable[[], Result]) -> Result:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measurement).result()


def median_of_repeats(measurement: Callable[[], Result]) -> Result:
    runs = [in_fresh_process(measurement) for _ in range(REPEATS)]
    return sorted(runs, key=lambda run: run.seconds)[REPEATS // 2]


def buffer_table() -> Iterator[str]:
    """The run of median speed, for each budget and implementation."""
    yield f"{TOKENS:,} response tokens in {PROMPTS} groups of {GROUP_SIZE}"
    yield HEADER
    for token_budget in BUDGETS:
        streaming, naive = (
            median_of_repeats(partial(measure, implementation, token_budget))
            for implementation in (StreamingBuffer, ConcatenatingBuffer)
        )
        for name, run in (("streaming", streaming), ("concatenating", naive)):
            yield run.row(name, token_budget)
        yield (
            f"{'  second : first':<20} {'':>11} {'':>6} {naive.seconds / streaming.seconds:>9.1f} {'':>9} {'':>12} "
            f"{naive.peak_bytes / streaming.peak_bytes:>13.2f}"
        )


class Recorded(FakeRollout):
    """An engine that has every response already, so that only the loop around it is measured.

    Prompts beyond the load stay unfinished, as if their first token took for ever.
    """

    def __init__(self, load: list[Rollout]) -> None:
        super().__init__()
        self._load, self._interrupted = load, asyncio.Event()

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
        assert isinstance(rollout, Rollout)
        if rollout.prompt.index >= len(self._load):
            await self._interrupted.wait()
            status = RolloutStatus(new_tokens=0, in_flight_tokens=0, finished_tokens=0, unfinished=GROUP_SIZE)
            return RolloutRef(rollout), status
        finished = self._load[rollout.prompt.index]
        tokens = sum(map(len, finished.sequences))
        status = RolloutStatus(new_tokens=tokens, in_flight_tokens=0, finished_tokens=tokens, unfinished=0)
        return RolloutRef(finished), status

    async def interrupt(self, *, sleep: bool = False) -> None:
        self._interrupted.set()
        await super().interrupt(sleep=sleep)

    async def resume(self, version: int | None = None) -> None:
        self._interrupted.clear()
        await super().resume(version)


def measure_controller(token_budget: int) -> Result:
    """The whole loop in one process: the real stream, buffer and controller, with nothing to sample or to train."""
    load = rollouts()
    algo = AlgoConfig(token_budget=token_budget, group_size=GROUP_SIZE, max_staleness=TOKENS // token_budget)
    steps, log = TOKENS // token_budget, StepList()
    config = RunConfig(algo=algo, train=TrainConfig(steps=steps))

    async def train() -> float:
        rollout, policy, reward = Recorded(load), FakePolicy(), FakeReward()
        stream = RolloutStream(
            prompts=FakePrompts(PROMPTS),
            rollout=rollout,
            sync=WeightSync(policy, rollout, verify=False, take_turns=False),
            reward=reward,
            buffer=LocalBuffer(algo),
            algo=algo,
            overlap=True,
            max_in_flight=64 * GROUP_SIZE,
            max_response_tokens=MAX_LENGTH,
        )
        started = time.process_time()
        await Controller(
            config,
            stream=stream,
            policy=policy,
            reference=None,
            reward=reward,
            meters={},
            checkpoints=FakeCheckpoints(),
            tracker=log,
        ).run()
        return time.process_time() - started

    seconds = asyncio.run(train())
    assert [step.batch.trained_tokens for step in log.steps] == [token_budget] * steps
    return Result.of(load, takes=steps, seconds=seconds)


def controller_table() -> Iterator[str]:
    yield f"the same load through stream, buffer and controller, in-process; {PROMPTS} prompts"
    yield HEADER
    for token_budget in BUDGETS:
        run = median_of_repeats(partial(measure_controller, token_budget))
        yield run.row("controller", token_budget)


TABLES = (buffer_table, controller_table)


def main() -> None:
    for table in TABLES:
        for line in table():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
