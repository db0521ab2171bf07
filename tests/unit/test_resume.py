"""Which checkpoint a run goes on from, and what of its config may have changed."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.buffer import BufferState
from ring_ray.checkpoint.store import STATE, CheckpointError, CheckpointStore, write_file
from ring_ray.config import AlgoConfig, CheckpointConfig, ConfigError, JudgeConfig, RewardConfig, RunConfig, TrainConfig
from ring_ray.evaluation import Accuracy
from ring_ray.resume import checkpoint_to_resume, differences, read_state
from ring_ray.roles import BufferStateRef
from ring_ray.saver import RunOrigin, RunState, Saver
from ring_ray.stream import StreamSnapshot, StreamState
from tests.unit.checkpoints import LocalArchive
from tests.unit.fakes import FakePolicy

ORIGIN = RunOrigin(model_path="hub/model", accuracy={"base": Accuracy(correct=1, n=4)}, wandb_id="ab12")
SNAPSHOT = StreamSnapshot(
    state=StreamState(
        generated=0, mean_length=10.0, cursor={"issued": 3, "domains": {"d": 3}, "digest": "d"}, unfinished={}
    ),
    buffer=BufferStateRef(BufferState()),
    unfinished={},
)


def config(steps: int = 40, every: int = 10, resume: str = "auto", budget: int = 100) -> RunConfig:
    return RunConfig(
        algo=AlgoConfig(token_budget=budget),
        train=TrainConfig(steps=steps),
        checkpoint=CheckpointConfig(every=every, keep_last=3),
        resume=resume,
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "checkpoints"), config().checkpoint)


def saver(
    store: CheckpointStore,
    say: Callable[[str], None] = lambda _: None,
    archive: LocalArchive | None = None,
    run: RunConfig | None = None,
) -> Saver:
    archive = archive or LocalArchive()
    return Saver(run or config(), store=store, archive=archive, policy=FakePolicy(), origin=ORIGIN, say=say)


def save(saver: Saver, *steps: int) -> None:
    async def go() -> None:
        for step in steps:
            await saver.take(step, SNAPSHOT, score=float(step))
            saver.write()
        await saver.finish()

    asyncio.run(go())


def test_the_first_the_last_and_every_so_many_steps_are_saved(store: CheckpointStore) -> None:
    assert [step for step in range(41) if saver(store).due(step)] == [0, 10, 20, 30, 40]
    assert [step for step in range(14) if saver(store, run=config(steps=13)).due(step)] == [0, 10, 13]


def test_nothing_is_saved_where_that_is_not_wanted(store: CheckpointStore) -> None:
    assert not any(saver(store, run=config(every=0)).due(step) for step in range(41))


def test_what_was_taken_is_written_only_when_the_step_is_reported(store: CheckpointStore) -> None:
    async def go() -> None:
        one = saver(store)
        await one.take(10, SNAPSHOT, score=0.5)
        await one.finish()
        assert store.steps() == []
        one.write()
        await one.finish()
        one.write()  # nothing is left to write
        await one.finish()

    asyncio.run(go())
    assert store.steps() == [10]


def test_a_full_disk_is_told_and_counted_and_the_next_checkpoint_is_written(store: CheckpointStore) -> None:
    said: list[str] = []
    one = saver(store, said.append, LocalArchive(full_at=[20]))
    save(one, 10, 20, 30)
    assert store.steps() == [10, 30]
    assert one.failures == 1
    assert [text for text in said if "step 20 could not be saved" in text and "no space left" in text]


def test_a_run_goes_on_from_its_newest_checkpoint(store: CheckpointStore) -> None:
    save(saver(store), 10, 20)
    resumed = checkpoint_to_resume(config(), store, finished=False)
    assert resumed is not None
    assert (resumed.state.step, resumed.state.origin, resumed.changes) == (20, ORIGIN, ())
    assert resumed.state.stream == SNAPSHOT.state
    assert resumed.state.config == config()
    assert resumed.checkpoint == store.latest()


def test_a_run_begins_anew_without_a_checkpoint_or_where_it_is_told_to(store: CheckpointStore) -> None:
    assert checkpoint_to_resume(config(), store, finished=False) is None
    save(saver(store), 10)
    assert checkpoint_to_resume(config(resume="never"), store, finished=False) is None


def test_a_finished_run_goes_on_only_to_more_steps(store: CheckpointStore) -> None:
    save(saver(store), 30, 40)
    assert checkpoint_to_resume(config(), store, finished=True) is None
    resumed = checkpoint_to_resume(config(steps=60), store, finished=True)
    assert resumed is not None
    assert resumed.changes == ("train.steps=40 (now 60)",)


def test_a_run_of_another_config_is_not_gone_on_with_by_itself(store: CheckpointStore) -> None:
    save(saver(store), 10)
    with pytest.raises(ConfigError, match=r"algo\.token_budget=100 \(now 200\): resume=never begins anew"):
        checkpoint_to_resume(config(budget=200), store, finished=False)
    checkpoint = str(store.latest())
    resumed = checkpoint_to_resume(config(budget=200, resume=checkpoint), store, finished=False)
    assert resumed is not None
    assert resumed.changes == ("algo.token_budget=100 (now 200)",)
    assert "algo.token_budget=100 (now 200)" in resumed.sentence


def test_a_judge_may_move_while_a_run_is_away_but_not_be_another(store: CheckpointStore) -> None:
    def judged(**keys: Any) -> RunConfig:
        return replace(config(), reward=RewardConfig(judge=JudgeConfig(**({"model": "m"} | keys))))

    save(saver(store, run=judged(url="http://node-1:8000/v1")), 10)
    resumed = checkpoint_to_resume(judged(url="http://node-2:8000/v1", timeout_seconds=60.0), store, finished=False)
    assert resumed is not None
    changed = {change.partition("=")[0] for change in resumed.changes}
    assert changed == {"reward.judge.timeout_seconds", "reward.judge.url"}
    with pytest.raises(ConfigError, match=r"reward\.judge\.model=m \(now other\)"):
        checkpoint_to_resume(judged(url="http://node-1:8000/v1", model="other"), store, finished=False)


def test_verifiers_of_ones_own_are_named_again(store: CheckpointStore) -> None:
    run = replace(config(), reward=RewardConfig(verifiers={"polite": "my_rewards:Polite"}))
    save(saver(store, run=run), 10)
    assert checkpoint_to_resume(run, store, finished=False)
    with pytest.raises(ConfigError, match=r"reward\.verifiers\.polite=my_rewards:Polite \(now None\)"):
        checkpoint_to_resume(config(), store, finished=False)


def test_the_size_of_a_group_can_not_change_within_a_run(store: CheckpointStore) -> None:
    save(saver(store), 10)
    other = replace(config(resume=str(store.latest())), algo=AlgoConfig(token_budget=100, group_size=4))
    with pytest.raises(ConfigError, match=r"algo\.group_size=.* \(now 4\): that can't change within a run"):
        checkpoint_to_resume(other, store, finished=False)


def test_a_checkpoint_later_than_the_last_step_is_refused(store: CheckpointStore) -> None:
    save(saver(store), 30)
    with pytest.raises(ConfigError, match=r"train\.steps=20: .* is of step 30 already"):
        checkpoint_to_resume(config(steps=20), store, finished=False)


def test_a_checkpoint_that_is_not_there_or_damaged_is_named(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/manifest\.json"):
        checkpoint_to_resume(config(resume=str(tmp_path / "nowhere")), store, finished=False)
    save(saver(store), 10)
    state = tmp_path / "checkpoints" / "step-00000010" / "state.json"
    state.write_bytes(state.read_bytes().replace(b"ab12", b"ab13"))
    with pytest.raises(CheckpointError, match=r"state\.json: its content is not what was written"):
        checkpoint_to_resume(config(), store, finished=False)


@pytest.mark.parametrize("resume", ["nosuch://bucket/step-00000010", "s3+x://"])
def test_a_checkpoint_in_no_file_system_is_refused(store: CheckpointStore, resume: str) -> None:
    with pytest.raises(CheckpointError, match=f"{re.escape(resume)}: no such file system"):
        checkpoint_to_resume(config(resume=resume), store, finished=False)


@settings(deadline=None)
@given(st.data())
def test_a_state_of_another_version_is_read_or_refused_by_name(data: st.DataObject) -> None:
    """The hash is right: so it was written, by another version of this software or by somebody's editor."""
    state = RunState(step=10, origin=ORIGIN, stream=SNAPSHOT.state, config=config())
    content = bytearray(msgspec.json.encode(state))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"null", b"-1", b"1e999", b"[", b'"', b"{}"])
        )
    with TemporaryDirectory() as directory:
        store = CheckpointStore(directory, config().checkpoint)
        checkpoint = store.begin(10)
        store.commit(10, [write_file(checkpoint, STATE, [bytes(content)])], 0.0)
        try:
            read_state(checkpoint)
        except CheckpointError as error:
            refusal = str(error)
        else:
            return
    assert refusal.startswith(f"{checkpoint}/{STATE}: can't be understood: ")


@pytest.mark.parametrize(("key", "value"), [("token_budget", 0), ("correction_high", None), ("clip_range", "x")])
def test_a_state_with_a_config_that_is_refused_now_is_named(tmp_path: Path, key: str, value: object) -> None:
    state = msgspec.to_builtins(RunState(step=10, origin=ORIGIN, stream=SNAPSHOT.state, config=config()))
    state["config"]["algo"][key] = value
    store = CheckpointStore(str(tmp_path), config().checkpoint)
    checkpoint = store.begin(10)
    store.commit(10, [write_file(checkpoint, STATE, [msgspec.json.encode(state)])], 0.0)
    with pytest.raises(
        CheckpointError, match=rf"{STATE}: can't be understood: .*{key if value is not None else 'algo'}"
    ):
        read_state(checkpoint)


def test_differences_are_found_key_by_key() -> None:
    assert differences(config(), config()) == {}
    assert differences(config(), config(budget=7, steps=8)) == {
        "algo.token_budget": (100, 7),
        "train.steps": (40, 8),
    }


def branch(tmp_path: Path, resume: str, steps: int = 40) -> tuple[RunConfig, CheckpointStore]:
    """A run in another directory that is told to go on from ``resume``."""
    run = replace(config(steps=steps, resume=resume), run_dir=str(tmp_path / "branch"))
    return run, CheckpointStore(str(tmp_path / "branch" / "checkpoints"), run.checkpoint)


def test_a_branch_that_is_started_again_goes_on_with_the_branch(store: CheckpointStore, tmp_path: Path) -> None:
    save(saver(store), 10, 20)
    run, own = branch(tmp_path, str(tmp_path / "checkpoints" / "step-00000010"))
    first = checkpoint_to_resume(run, own, finished=False)
    assert first is not None
    assert (first.state.step, first.own) == (10, False)
    origin = first.origin("cd34")
    assert (origin.wandb_id, origin.branched_from) == ("cd34", first.checkpoint)

    continued = Saver(run, store=own, archive=LocalArchive(), policy=FakePolicy(), origin=origin, say=lambda _: None)
    save(continued, 20, 30)
    again = checkpoint_to_resume(run, own, finished=False)
    assert again is not None
    assert (again.state.step, again.own, again.origin("cd34")) == (30, True, origin)
    alone = checkpoint_to_resume(replace(run, resume="auto"), own, finished=False)
    assert alone is not None
    assert alone.origin("cd34") == origin


def test_another_runs_checkpoints_are_not_branched_over(store: CheckpointStore, tmp_path: Path) -> None:
    save(saver(store), 10)
    run, own = branch(tmp_path, str(store.latest()))
    save(Saver(run, store=own, archive=LocalArchive(), policy=FakePolicy(), origin=ORIGIN, say=lambda _: None), 20)
    with pytest.raises(ConfigError, match=r"checkpoints of another run, .*step-00000020"):
        checkpoint_to_resume(run, own, finished=False)


def test_a_branch_needs_steps_to_take(store: CheckpointStore, tmp_path: Path) -> None:
    save(saver(store), 40)
    run, own = branch(tmp_path, str(store.latest()))
    with pytest.raises(ConfigError, match=r"train\.steps=40: .* is of step 40 already"):
        checkpoint_to_resume(run, own, finished=False)


@pytest.mark.parametrize(
    "spelling", ["{0}/checkpoints/step-00000010", "{0}//checkpoints/./step-00000010/", "{0}/link/step-00000010"]
)
def test_a_checkpoint_is_ones_own_however_it_is_spelled(store: CheckpointStore, tmp_path: Path, spelling: str) -> None:
    save(saver(store), 10, 20)
    (tmp_path / "link").symlink_to(tmp_path / "checkpoints")
    resumed = checkpoint_to_resume(config(resume=spelling.format(tmp_path)), store, finished=False)
    assert resumed is not None
    assert (resumed.state.step, resumed.own) == (10, True)


def test_two_runs_do_not_share_a_directory_of_checkpoints(store: CheckpointStore, tmp_path: Path) -> None:
    shared = CheckpointConfig(every=10, keep_last=3, directory=str(tmp_path))
    first = replace(config(), run_dir="outputs/first", checkpoint=shared)
    save(saver(store, run=first), 10)
    with pytest.raises(ConfigError, match=r"checkpoint\.directory=.* has checkpoints of the run in outputs/first"):
        checkpoint_to_resume(replace(first, run_dir="elsewhere/first"), store, finished=False)
    assert checkpoint_to_resume(first, store, finished=False)


def test_the_model_that_training_began_from_must_be_there(store: CheckpointStore, tmp_path: Path) -> None:
    origin = replace(ORIGIN, model_path=str(tmp_path / "sft"))
    save(
        Saver(config(), store=store, archive=LocalArchive(), policy=FakePolicy(), origin=origin, say=lambda _: None), 10
    )
    with pytest.raises(CheckpointError, match="sft is gone"):
        checkpoint_to_resume(config(), store, finished=False)


def test_what_a_full_disk_left_is_removed(store: CheckpointStore, tmp_path: Path) -> None:
    save(saver(store, archive=LocalArchive(full_at=[20])), 10, 20)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
