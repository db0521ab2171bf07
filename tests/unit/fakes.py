"""In-process stand-ins for the engines: the stream and the controller run on them in milliseconds, without Ray.

The buffer is the real one. Time is the event loop's turns: an engine samples one token a sequence each turn.
"""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from ring_ray.buffer import RolloutBuffer
from ring_ray.config import AlgoConfig, TrainConfig
from ring_ray.roles import BatchRef, BufferStatus, LogprobsRef, ParcelRef, RolloutRef
from ring_ray.types import (
    BatchSummary,
    Ledger,
    Prompt,
    Reward,
    Rollout,
    RolloutSample,
    RolloutStatus,
    Sequence,
    StepMetrics,
    TokenBatch,
    UpdateMetrics,
    Verdict,
)

PARCELS = [ParcelRef("embeddings"), ParcelRef("experts")]


class FakePrompts:
    def __init__(self, distinct: int = 100) -> None:
        self.issued, self._distinct = 0, distinct

    def next(self) -> Prompt:
        self.issued += 1
        return make_prompt(self.issued - 1)

    def __len__(self) -> int:
        return self._distinct


def make_prompt(index: int) -> Prompt:
    ids = np.array([1, 2, 3], np.int32)
    return Prompt(index=index, id=f"p-{index}", domain="d", text="?", token_ids=ids, verifier="v", answer="a")


class FakeRollout:
    """Samples tokens that count up from 0, so that a lost or repeated one shows; lengths are drawn by seed."""

    checksum = "same"

    def __init__(self, mean_length: float = 20, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._mean_length = mean_length
        self._open, self._running = True, 0
        self._idle = asyncio.Condition()
        self.version, self.loads, self.sampled, self.lose_a_token = 0, 0, 0, False
        self.asleep = False
        self._received: list[ParcelRef] = []

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
        assert isinstance(rollout, Rollout)
        before = sum(map(len, rollout.sequences))
        self._running += 1
        try:
            sequences = await asyncio.gather(
                *(
                    self._continue(sequence, self.mean_length(rollout, i))
                    for i, sequence in enumerate(rollout.sequences)
                )
            )
        finally:
            self._running -= 1
            async with self._idle:
                self._idle.notify_all()
        total = sum(map(len, sequences))
        in_flight = sum(len(sequence) for sequence in sequences if not sequence.finished)
        status = RolloutStatus(
            new_tokens=total - before + self.lose_a_token,
            in_flight_tokens=in_flight,
            finished_tokens=total - in_flight,
            unfinished=sum(not sequence.finished for sequence in sequences),
        )
        return RolloutRef(replace(rollout, sequences=tuple(sequences))), status

    def mean_length(self, rollout: Rollout, response: int) -> float:
        return self._mean_length

    async def _continue(self, sequence: Sequence, mean_length: float) -> Sequence:
        while not sequence.finished and self._open:
            await asyncio.sleep(0)
            if not self._open:
                break
            token = len(sequence)
            self.sampled += 1
            sequence = replace(
                sequence,
                response_ids=np.append(sequence.response_ids, np.int32(token)),
                logprobs=np.append(sequence.logprobs, np.float32(-1)),
                versions=np.append(sequence.versions, np.int32(self.version)),
                finish_reason="stop" if self._random.random() < 1 / mean_length else "unfinished",
            )
        return sequence

    async def interrupt(self, *, sleep: bool = False) -> None:
        self._open = False
        self.asleep = self.asleep or sleep
        async with self._idle:
            await self._idle.wait_for(lambda: self._running == 0)

    async def receive(self, parcel: ParcelRef) -> None:
        assert not self._open
        self._received.append(parcel)

    async def resume(self, version: int | None = None) -> None:
        assert self._received == (PARCELS if version is not None else [])
        if version is not None:
            self.version, self.loads, self.asleep, self._received = version, self.loads + 1, False, []
        assert not self.asleep
        self._open = True

    async def checksums(self) -> list[dict[str, str]]:
        return [{"w": "same"}, {"w": self.checksum}]

    async def memory(self) -> int:
        return 0 if self.asleep else 100


class FakeReward:
    """Right or wrong at random; ``verdict`` fixes it."""

    def __init__(self, verdict: Verdict | None = None, seed: int = 1) -> None:
        self._random, self._verdict = np.random.default_rng(seed), verdict
        self._samples: list[RolloutSample] = []

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        assert isinstance(rollout, Rollout)
        await asyncio.sleep(0)
        rewards = tuple(self._reward() for _ in rollout.sequences)
        self._samples.append(make_sample(rollout, rewards[0]))
        return rewards

    async def samples(self) -> tuple[RolloutSample, ...]:
        samples, self._samples = tuple(self._samples), []
        return samples

    def _reward(self) -> Reward:
        verdict = self._verdict or (Verdict.CORRECT if self._random.random() < 0.5 else Verdict.WRONG)
        return Reward(score=float(verdict is Verdict.CORRECT), verdict=verdict, reason="fake")


class LocalBuffer:
    """The real buffer, called in process."""

    def __init__(self, algo: AlgoConfig) -> None:
        self.buffer, self._revision = RolloutBuffer(algo, seed=0), 0

    def _status(self) -> BufferStatus:
        self._revision += 1
        return BufferStatus(
            revision=self._revision, queued=self.buffer.queued_steps(), backlog=self.buffer.backlog_steps()
        )

    async def add(self, rollout: RolloutRef) -> BufferStatus:
        assert isinstance(rollout, Rollout)
        self.buffer.add(rollout)
        return self._status()

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        self.buffer.score(prompt_index, rewards)
        return self._status()

    async def take(self) -> tuple[BatchRef, BatchSummary, BufferStatus]:
        batch, summary = self.buffer.take()
        return BatchRef(batch), summary, self._status()

    async def advance(self, version: int) -> tuple[Ledger, BufferStatus]:
        self.buffer.advance(version)
        return self.buffer.ledger(), self._status()


class FakePolicy:
    """Remembers the batches that it was given; an update lasts ``update_turns``, so generation overlaps it."""

    def __init__(self, update_turns: int = 10) -> None:
        self._update_turns = update_turns
        self.batches: list[TokenBatch] = []
        self.references: list[LogprobsRef | None] = []
        self.started: list[str] = []
        self.saved: list[str] = []
        self.on_device = False

    async def start(self, model_path: str, train: TrainConfig, algo: AlgoConfig) -> None:
        self.started.append(model_path)
        self.on_device = True

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
        assert isinstance(batch, TokenBatch)
        self.batches.append(batch)
        self.on_device = True
        self.references.append(reference)
        for _ in range(self._update_turns):
            await asyncio.sleep(0)
        return make_update()

    async def parcels(self) -> AsyncIterator[ParcelRef]:
        self.on_device = True
        for parcel in PARCELS:
            yield parcel

    async def checksums(self) -> dict[str, str]:
        return {"w": "same"}

    async def offload(self) -> None:
        self.on_device = False

    async def memory(self) -> int:
        return 200 if self.on_device else 0

    async def save(self, path: str) -> None:
        self.saved.append(path)


class FakeReference:
    async def start(self, model_path: str) -> None:
        return None

    async def memory(self) -> int:
        return 50

    async def logprobs(self, batch: BatchRef) -> LogprobsRef:
        assert isinstance(batch, TokenBatch)
        return LogprobsRef(tuple(np.zeros(len(segment), np.float32) for segment in batch.segments))


def make_update() -> UpdateMetrics:
    numbers = dict.fromkeys(UpdateMetrics.__dataclass_fields__, 0.0)
    return UpdateMetrics(**(numbers | {"micro_batches": 1}))  # type: ignore[arg-type]


def make_sample(rollout: Rollout, reward: Reward) -> RolloutSample:
    """Of the first response."""
    sequence = rollout.sequences[0]
    return RolloutSample(
        prompt_index=rollout.prompt.index,
        domain=rollout.prompt.domain,
        prompt=rollout.prompt.text,
        response="!",
        reward=reward,
        tokens=len(sequence),
        first_version=int(sequence.versions[0]),
        last_version=int(sequence.versions[-1]),
        truncated=sequence.finish_reason == "length",
    )


class StepList:
    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []
        self.samples: dict[int, Many[RolloutSample]] = {}  # by step

    def log(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def rollouts(self, step: int, samples: Many[RolloutSample]) -> None:
        self.samples[step] = samples
