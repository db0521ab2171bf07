"""In-process stand-ins for the engines: the stream and the controller run on them in milliseconds, without Ray.

The buffer is the real one. Time is the event loop's turns: an engine samples one token a sequence each turn. What it
samples, and what that earns, only the seed, the prompt and the number of the response decide.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Container
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from ring_ray.buffer import BufferState, RolloutBuffer
from ring_ray.config import AlgoConfig, TrainConfig
from ring_ray.data.source import Cursor
from ring_ray.roles import BatchRef, BufferStateRef, BufferStatus, LogprobsRef, ParcelRef, PolicyStateRef, RolloutRef
from ring_ray.stream import StreamSnapshot
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

    def state(self) -> Cursor:
        return {"issued": self.issued, "domains": {"d": self.issued}, "digest": "fake"}

    def restore(self, cursor: Cursor) -> None:
        self.issued = cursor["issued"]

    def __len__(self) -> int:
        return self._distinct


def make_prompt(index: int) -> Prompt:
    ids = np.array([1, 2, 3], np.int32)
    return Prompt(index=index, id=f"p-{index}", domain="d", text="?", token_ids=ids, verifier="v", answer="a")


class FakeRollout:
    """Samples tokens that count up from 0, so that a lost or repeated one shows; log-probs tell the responses apart."""

    checksum = "same"

    def __init__(self, mean_length: float = 20, seed: int = 0) -> None:
        self._mean_length, self._seed = mean_length, seed
        self._open, self._running = True, 0
        self._idle = asyncio.Condition()
        self.version, self.loads, self.sampled, self.lose_a_token = 0, 0, 0, False
        self.asleep = False
        self._received: list[ParcelRef] = []

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus] | None:
        assert isinstance(rollout, Rollout)
        before = sum(map(len, rollout.sequences))
        self._running += 1
        try:
            sequences = await asyncio.gather(
                *(self._continue(sequence, rollout, response) for response, sequence in enumerate(rollout.sequences))
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

    def length(self, rollout: Rollout, response: int) -> float:
        """Tokens that the response will have, at least 1."""
        draw = np.random.default_rng((self._seed, rollout.prompt.index, response))
        return float(draw.geometric(1 / self._mean_length))

    async def tick(self) -> None:
        """How long a token takes."""
        await asyncio.sleep(0)

    async def _continue(self, sequence: Sequence, rollout: Rollout, response: int) -> Sequence:
        length = self.length(rollout, response)
        while not sequence.finished and self._open:
            await self.tick()
            if not self._open:
                break
            token = len(sequence)
            self.sampled += 1
            sequence = replace(
                sequence,
                response_ids=np.append(sequence.response_ids, np.int32(token)),
                logprobs=np.append(sequence.logprobs, np.float32(-response)),
                versions=np.append(sequence.versions, np.int32(self.version)),
                finish_reason="stop" if token + 1 >= length else "unfinished",
            )
        return sequence

    async def interrupt(self, *, sleep: bool = False) -> None:
        self._open = False
        self.asleep = self.asleep or sleep
        async with self._idle:
            await self._idle.wait_for(lambda: self._running == 0)

    def begin_update(self, *, newcomers: bool) -> tuple[str, ...]:
        return () if newcomers else ("rollout engine 0", "rollout engine 1")

    async def receive(self, parcel: ParcelRef) -> bool:
        assert not self._open
        self._received.append(parcel)
        return True

    async def returned(self) -> None:
        await asyncio.Event().wait()  # none is ever lost

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
        self._seed, self._verdict = seed, verdict
        self._samples: list[RolloutSample] = []

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        assert isinstance(rollout, Rollout)
        await self.tick()
        self._random = np.random.default_rng((self._seed, rollout.prompt.index))
        rewards = tuple(self._reward() for _ in rollout.sequences)
        self._samples.append(make_sample(rollout, rewards[0]))
        return rewards

    async def tick(self) -> None:
        """How long a group takes."""
        await asyncio.sleep(0)

    async def samples(self) -> tuple[RolloutSample, ...]:
        samples, self._samples = tuple(self._samples), []
        return samples

    def _reward(self) -> Reward:
        verdict = self._verdict or (Verdict.CORRECT if self._random.random() < 0.5 else Verdict.WRONG)
        return Reward(score=float(verdict is Verdict.CORRECT), verdict=verdict, reason="fake")


class LocalBuffer:
    """The real buffer, called in process."""

    def __init__(self, algo: AlgoConfig) -> None:
        self._algo, self._revision = algo, 0
        self.buffer = RolloutBuffer(algo, seed=0)

    def _status(self) -> BufferStatus:
        self._revision += 1
        return BufferStatus(
            revision=self._revision, queued=self.buffer.queued_steps(), backlog=self.buffer.backlog_steps()
        )

    async def add(self, rollout: RolloutRef) -> BufferStatus:
        assert isinstance(rollout, Rollout)
        self.buffer.add(rollout)
        return self._status()

    async def waiting(self, prompt_index: int) -> RolloutRef:
        return RolloutRef(self.buffer.waiting[prompt_index])

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        self.buffer.score(prompt_index, rewards)
        return self._status()

    async def take(self) -> tuple[BatchRef, BatchSummary, BufferStatus]:
        batch, summary = self.buffer.take()
        return BatchRef(batch), summary, self._status()

    async def advance(self, version: int, skipped: BatchRef | None = None) -> tuple[Ledger, BufferStatus]:
        assert skipped is None or isinstance(skipped, TokenBatch)
        self.buffer.advance(version, skipped)
        return self.buffer.ledger(), self._status()

    async def snapshot(self) -> BufferStateRef:
        return BufferStateRef(self.buffer.state())

    async def restore(self, state: BufferStateRef) -> tuple[BufferStatus, dict[int, RolloutRef]]:
        assert isinstance(state, BufferState)
        self.buffer = RolloutBuffer(self._algo, seed=0, state=state)
        return self._status(), {index: RolloutRef(rollout) for index, rollout in self.buffer.waiting.items()}


class FakeCheckpoints:
    """Takes one every so many steps, or none where that is 0."""

    def __init__(self, every: int = 0) -> None:
        self._every = every
        self.taken: dict[int, StreamSnapshot] = {}  # by step
        self.written: list[int] = []

    def due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    async def take(self, step: int, stream: StreamSnapshot, score: float) -> None:
        self.taken[step] = stream

    def write(self) -> None:
        self.written += [step for step in self.taken if step not in self.written]


class FakePolicy:
    """Remembers the batches that it was given; an update lasts ``update_turns``, so generation overlaps it.

    Of the updates, counted from 1, those in ``skips`` are skipped.
    """

    def __init__(self, update_turns: int = 10, skips: Container[int] = ()) -> None:
        self._update_turns, self._skips = update_turns, skips
        self.kept: list[tuple[BatchRef, LogprobsRef | None, str]] = []
        self.batches: list[TokenBatch] = []
        self.references: list[LogprobsRef | None] = []
        self.started: list[str] = []
        self.saved: list[str] = []
        self.restored: list[str] = []
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
        skipped = len(self.batches) in self._skips
        return replace(make_update(), skipped=skipped, loss=math.nan if skipped else 0.0)

    async def keep(self, batch: BatchRef, reference: LogprobsRef | None, path: str) -> None:
        self.kept.append((batch, reference, path))

    async def check(self) -> None:
        return None

    async def parcels(self, receivers: Many[str]) -> AsyncIterator[ParcelRef]:
        self.on_device = True
        for parcel in PARCELS:
            yield parcel

    async def checksums(self) -> dict[str, str]:
        return {"w": "same"}

    async def offload(self) -> None:
        self.on_device = False

    async def memory(self) -> int:
        return 200 if self.on_device else 0

    async def snapshot(self) -> PolicyStateRef:
        self.on_device = True
        return PolicyStateRef(f"after {len(self.batches)} updates")

    async def restore(self, checkpoint: str) -> None:
        self.restored.append(checkpoint)

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
    return UpdateMetrics(**(numbers | {"skipped": False, "micro_batches": 1}))  # type: ignore[arg-type]


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
