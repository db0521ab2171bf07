"""The stages of a run on in-process fakes."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ring_ray.checkpoint.store import CheckpointStore
from ring_ray.config import (
    AlgoConfig,
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    RolloutConfig,
    RunConfig,
    SftConfig,
    TrainConfig,
)
from ring_ray.evaluation import EvaluationError, evaluate
from ring_ray.health import NonFiniteError
from ring_ray.resume import checkpoint_to_resume
from ring_ray.roles import PolicyStateRef, Roles, RolloutRef
from ring_ray.sft import Demonstration
from ring_ray.stages import Course, Stages
from ring_ray.types import Fault, Reward, Rollout, RolloutSample, StepMetrics, Verdict
from tests.unit.checkpoints import LocalArchive
from tests.unit.fakes import FakePolicy, FakePrompts, FakeReward, FakeRollout, LocalBuffer, make_prompt


class HeldOut(FakePrompts):
    held_out = tuple(replace(make_prompt(index), domain="held out") for index in range(20))


class Journal:
    """What a run tells its tracker, in order."""

    wandb_id = "ab12"

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[Mapping[str, float]] = []
        self.rows: list[StepMetrics] = []
        self.faults: list[Fault] = []
        self.samples: dict[int, Sequence[RolloutSample]] = {}

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def note(self, values: Mapping[str, float]) -> None:
        self.notes.append(values)

    def log(self, metrics: StepMetrics) -> None:
        self.rows.append(metrics)

    @property
    def steps(self) -> int:
        return self.rows[-1].step if self.rows else 0

    def fault(self, fault: Fault) -> None:
        self.faults.append(fault)

    def rewind(self, steps: int) -> None:
        self.rows = [row for row in self.rows if row.step <= steps]

    def rollouts(self, step: int, samples: Sequence[RolloutSample]) -> None:
        self.samples[step] = samples


def demonstrations() -> Iterator[Demonstration]:
    while True:
        yield make_prompt(0), np.array([5, 6, 7], np.int32)


CONFIG = RunConfig(
    algo=AlgoConfig(token_budget=50, group_size=2, max_staleness=5),
    rollout=RolloutConfig(max_response_tokens=1000, max_sequences=8),
    train=TrainConfig(steps=3),
    sft=SftConfig(max_steps=6, probe_after=2, probe_every=2, target_accuracy=0.9, batch_size=4),
    evaluation=EvaluationConfig(prompts=10),
)


def run(
    config: RunConfig,
    reward: FakeReward,
    course: Course | None,
    run_dir: Path,
    policy: FakePolicy | None = None,
    rollout: FakeRollout | None = None,
) -> tuple[dict[str, float], FakePolicy, Journal, FakeRollout]:
    policy, journal, rollout = policy or FakePolicy(), Journal(), rollout or FakeRollout()

    async def go() -> dict[str, float]:
        roles = Roles(
            policy=policy,
            rollout=rollout,
            reward=reward,
            buffer=LocalBuffer(config.algo),
            archive=LocalArchive(),
            reference=None,
        )
        store = CheckpointStore(str(run_dir / "checkpoints"), config.checkpoint)
        stages = Stages(config, roles=roles, prompts=HeldOut(), course=course, tracker=journal, store=store)
        resumed = checkpoint_to_resume(config, store, finished=False)
        accuracies = await asyncio.wait_for(stages.run("base-model", run_dir, resumed), timeout=60)
        assert {accuracy.n for accuracy in accuracies.values()} == {config.evaluation.prompts}
        return {stage: accuracy.value for stage, accuracy in accuracies.items()}

    return asyncio.run(go()), policy, journal, rollout


def test_base_cold_start_and_rl_in_order(tmp_path: Path) -> None:
    course = Course(demonstrations(), HeldOut.held_out[:5])
    accuracy, policy, journal, rollout = run(CONFIG, FakeReward(Verdict.CORRECT), course, tmp_path)
    assert list(accuracy) == ["base", "sft", "rl"]
    assert [text.split(":")[0] for text in journal.stages if not text.startswith((" ", "checkpoint"))] == [
        "evaluation",
        "cold start",
        "evaluation",
        "c3po",
        "evaluation",
    ]
    # the first probe reaches the target, so the cold start stops there
    assert [note["sft/step"] for note in journal.notes if "sft/step" in note] == [1, 2]
    assert rollout.loads == 2 + 1 + 3 + 1, "a probe, the end of the cold start, RL's start, three steps, its end"
    assert policy.started == ["base-model", str(tmp_path / "sft")]
    assert policy.saved == [str(tmp_path / "sft"), str(tmp_path / "model")]
    sft, rl = policy.batches[:2], policy.batches[2:]
    assert all(batch.token_budget == batch.trained_tokens == 12 for batch in sft)
    assert [batch.trained_tokens for batch in rl] == [50, 50, 50]
    assert len(journal.rows) == 3
    assert list(journal.samples) == [1, 2, 3]
    assert {sample.domain for samples in journal.samples.values() for sample in samples} == {"d"}


def test_a_cold_start_that_misses_its_target_ends_and_says_so(tmp_path: Path) -> None:
    course = Course(demonstrations(), HeldOut.held_out[:5])
    _, _, journal, _ = run(CONFIG, FakeReward(Verdict.WRONG), course, tmp_path)
    assert [note["sft/step"] for note in journal.notes if "sft/step" in note] == [1, 2, 3, 4, 5, 6]
    assert any("sft.target_accuracy=0.9 was not reached" in text for text in journal.stages)


def test_a_cold_start_stops_at_too_many_skipped_steps_in_a_row(tmp_path: Path) -> None:
    course, policy = Course(demonstrations(), HeldOut.held_out[:5]), FakePolicy(skips={1, 3, 4, 5})
    config = replace(CONFIG, run_dir=str(tmp_path), train=TrainConfig(steps=3, max_skipped_steps=2))
    with pytest.raises(NonFiniteError, match=r"train.max_skipped_steps=2: .* sft-step 4 "):
        run(config, FakeReward(Verdict.WRONG), course, tmp_path, policy)
    assert policy.kept == [(policy.batches[3], None, str(tmp_path / "skipped-sft-step-00000004.msgpack"))]


def test_without_a_cold_start_sft_is_the_base_model(tmp_path: Path) -> None:
    accuracy, policy, _, _ = run(replace(CONFIG), FakeReward(), None, tmp_path)
    assert accuracy["sft"] == accuracy["base"]
    assert policy.started == ["base-model"]


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.TIMED_OUT])
def test_what_can_not_be_judged_counts_neither_way(verdict: Verdict) -> None:
    class SometimesBroken(FakeReward):
        def _reward(self) -> Reward:
            judged = self.scored % 4
            self.scored += 1
            return Reward(
                score=0.0, verdict=(verdict, Verdict.CORRECT, Verdict.WRONG, Verdict.WRONG)[judged], reason=""
            )

        scored = 0

    prompts = [make_prompt(index) for index in range(8)]
    accuracy = asyncio.run(evaluate(prompts, FakeRollout(), SometimesBroken()))
    assert (accuracy.correct, accuracy.n, accuracy.unjudged) == (2, 6, 2)
    with pytest.raises(EvaluationError, match="none of 8"):
        asyncio.run(evaluate(prompts, FakeRollout(), FakeReward(verdict)))


def test_accuracy_is_told_apart_by_domain() -> None:
    class ByIndex(FakeReward):
        async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
            assert isinstance(rollout, Rollout)
            verdict = (Verdict.FAILED, Verdict.CORRECT, Verdict.WRONG, Verdict.WRONG)[rollout.prompt.index % 4]
            return (Reward(score=0.0, verdict=verdict, reason=""),)

    prompts = [replace(make_prompt(index), domain=("even", "odd")[index % 2]) for index in range(8)]
    accuracy = asyncio.run(evaluate(prompts, FakeRollout(), ByIndex()))
    assert accuracy.domains == {"even": 0.0, "odd": 0.5}
    assert accuracy.value == 2 / 6


def test_a_run_that_is_resumed_goes_on_in_its_last_stage(tmp_path: Path) -> None:
    saved = replace(CONFIG, checkpoint=CheckpointConfig(every=2, keep_last=9))
    course = Course(demonstrations(), HeldOut.held_out[:5])
    first, *_ = run(saved, FakeReward(Verdict.CORRECT), course, tmp_path)
    assert CheckpointStore(str(tmp_path / "checkpoints"), saved.checkpoint).steps() == [0, 2, 3]

    (tmp_path / "sft").mkdir()  # as the policy would have, where it is no fake
    longer = replace(saved, train=TrainConfig(steps=5))
    second, policy, journal, rollout = run(longer, FakeReward(Verdict.CORRECT), course, tmp_path)
    assert [text.split(":")[0] for text in journal.stages if text.startswith(("evaluation", "cold", "c3po"))] == [
        "c3po",
        "evaluation",
    ]
    assert [step.step for step in journal.rows] == [4, 5]
    assert policy.started == [str(tmp_path / "sft")]
    assert [path.rpartition("/")[2] for path in policy.restored] == ["step-00000003"]
    assert rollout.version == 5
    assert {stage: second[stage] for stage in ("base", "sft")} == {stage: first[stage] for stage in ("base", "sft")}


def test_by_turns_the_policys_state_is_taken_while_the_engines_sleep(tmp_path: Path) -> None:
    rollout, taken = FakeRollout(), []

    class Watching(FakePolicy):
        async def snapshot(self) -> PolicyStateRef:
            taken.append(rollout.asleep)
            return await super().snapshot()

    by_turns = replace(
        CONFIG, cluster=ClusterConfig(overlap=False, take_turns=True), checkpoint=CheckpointConfig(every=2)
    )
    run(by_turns, FakeReward(), None, tmp_path, Watching(), rollout)
    assert taken == [True, True, True]  # before the first step, after 2 and 3
