"""One run, from a config to its report: check the input, start Ray, go through the stages, write what came out."""

import asyncio
import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from ring_ray.actors.cluster import ray_session, spawned
from ring_ray.actors.gauges import RayGauges
from ring_ray.actors.job import check_outlives_job
from ring_ray.actors.placement import PlacementError
from ring_ray.checkpoint.store import CheckpointError, CheckpointStore
from ring_ray.config import ConfigError, DataConfig, RunConfig
from ring_ray.data.demonstrations import demonstrations
from ring_ray.data.rows import DataError
from ring_ray.data.source import PromptSource, load_prompts
from ring_ray.data.tokenizer import Tokenizer, load_tokenizer
from ring_ray.engines.hf import check_context, check_model, check_policy
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.evaluation import Accuracy, EvaluationError
from ring_ray.health import CollapseError, NonFiniteError
from ring_ray.metrics import AccuracyInterval
from ring_ray.report import write_report
from ring_ray.resume import Resumed, checkpoint_to_resume
from ring_ray.rewards.registry import Verifiers, factories
from ring_ray.roles import RecoveryError, RollBackError
from ring_ray.stages import Course, Stages
from ring_ray.starvation import StarvedError, check_budget
from ring_ray.tracking import Tracker

logger = logging.getLogger(__name__)

USER_ERRORS = (
    CheckpointError,
    CollapseError,
    ConfigError,
    DataError,
    EvaluationError,
    NonFiniteError,
    PlacementError,
    RecoveryError,
    RollBackError,
    StarvedError,
)
"""Mistakes that the user can mend: their message says how, a stack trace would only hide it."""


def launch(config: RunConfig) -> float:
    """Run ``config`` and leave metrics.jsonl, summary.json, report.html and the models in ``config.run_dir``.

    Returns the accuracy on held-out prompts after RL.
    Everything that can be refused is refused before an actor starts. Raises one of `USER_ERRORS` for that.
    """
    run_dir = Path(config.run_dir)
    check_outlives_job(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with claimed(run_dir):
        return _run(config, run_dir)


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Have ``run_dir`` to ourselves until this process ends. Raises `ConfigError` where another run has it."""
    with open(run_dir / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"hydra.run.dir={run_dir}: another run is under way there") from None
        except OSError as error:  # a file system without locks
            logger.warning("%s can't be locked, so that two runs in it would not be noticed: %s", run_dir, error)
        yield


def _run(config: RunConfig, run_dir: Path) -> float:
    if config.sync.directory is not None:
        config.sync.directory = str(Path(config.sync.directory).absolute())  # actors work elsewhere
    fresh = config.model.path is None
    model_path = config.model.path or str(run_dir / "base")
    if fresh:
        make_tiny_model(model_path, config.seed)
    tokenizer = load_tokenizer(model_path, config.model)
    check_model(model_path, config.model, tokenizer)
    prompts = load_prompts(config, tokenizer, factories(config.reward))
    check_context(model_path, config.model, config.rollout)
    check_policy(model_path, config.model, config.train, config.algo)
    check_budget(config.algo, len(prompts), config.rollout.max_response_tokens)
    check_verifiers(config, prompts)
    cold = config.sft.enabled == "always" or (config.sft.enabled == "auto" and fresh)
    store = checkpoint_store(config)
    resumed = checkpoint_to_resume(config, store, finished=(run_dir / "summary.json").exists())
    if resumed:
        prompts.restore(resumed.state.stream.cursor)  # refuses other data while nothing is lost
    course = prepare_course(config, prompts, tokenizer) if cold and not resumed else None
    report = run_dir / "report.html"
    clear(run_dir, store, resumed)
    own = resumed.state if resumed and resumed.own else None
    steps, wandb_id = (own.step, own.origin.wandb_id) if own else (0, None)
    with Tracker(config, sinks=[RayGauges(run_dir.name)], steps=steps, wandb_id=wandb_id) as tracker:
        # Once the tracker has removed an earlier run's summary, which must not pass for this config's.
        OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")
        tracker.stage(f"starting Ray, vLLM and DeepSpeed; everything is written to {run_dir}")
        if resumed:
            tracker.stage(resumed.sentence)
        try:
            with ray_session(config.cluster):
                accuracies = asyncio.run(
                    _go_through_stages(config, model_path, prompts, course, tracker, store, resumed)
                )
            intervals = {stage: AccuracyInterval.of(seen.correct, seen.n) for stage, seen in accuracies.items()}
            tracker.stage(tracker.summary(intervals).sentence)
            left = [*(run_dir / name for name in Stages.MODELS), *sorted((run_dir / "checkpoints").glob("step-*"))]
            tracker.artifacts(directory for directory in left if directory.is_dir())
            return intervals["rl"].value
        finally:
            if tracker.steps:  # a run that was interrupted has something to show, too
                write_report([run_dir], report)
                tracker.stage(f"report: {report}")


def checkpoint_store(config: RunConfig) -> CheckpointStore:
    """Of ``config.checkpoint.directory`` each run takes a directory that is called as the run's."""
    run_dir, shared = Path(config.run_dir), config.checkpoint.directory
    if shared and "://" not in shared:
        check_outlives_job(Path(shared), "checkpoint.directory")
    return CheckpointStore(f"{shared}/{run_dir.name}" if shared else str(run_dir / "checkpoints"), config.checkpoint)


def clear(run_dir: Path, store: CheckpointStore, resumed: Resumed | None) -> None:
    """Remove what an earlier run left, or what this one made after the checkpoint that it goes on from."""
    if resumed is None or resumed.own:
        store.discard(after=resumed.state.step if resumed else -1)
    (run_dir / "report.html").unlink(missing_ok=True)
    for stage in Stages.MODELS[1:] if resumed else Stages.MODELS:
        shutil.rmtree(run_dir / stage, ignore_errors=True)


def prepare_course(config: RunConfig, prompts: PromptSource, tokenizer: Tokenizer) -> Course:
    """What the cold start learns from: the run's own prompts as far as they have demonstrations, else worked sums."""
    if prompts.demonstrations:
        # as far as there are, prompts that no evaluation uses, so that choosing by them flatters no result
        spare = prompts.held_out[config.evaluation.prompts :]
        probe = (*spare, *prompts.held_out)[: config.sft.probe_prompts]
    else:
        prompts = load_prompts(replace(config, data=DataConfig()), tokenizer, factories(config.reward))
        probe = prompts.held_out[: config.sft.probe_prompts]
    return Course(demonstrations=demonstrations(prompts, tokenizer, config.seed), probe=probe)


def used_verifiers(prompts: PromptSource) -> frozenset[str]:
    return frozenset(prompt.verifier for prompt in (*prompts.training, *prompts.held_out))


def check_verifiers(config: RunConfig, prompts: PromptSource) -> None:
    """Raises `ConfigError` where a verifier that the data asks for can't judge here, or can't read its answer."""
    verifiers = Verifiers(config.reward)
    try:
        verifiers.check((*prompts.training, *prompts.held_out))
    finally:
        verifiers.close()


async def _go_through_stages(
    config: RunConfig,
    model_path: str,
    prompts: PromptSource,
    course: Course | None,
    tracker: Tracker,
    store: CheckpointStore,
    resumed: Resumed | None,
) -> dict[str, Accuracy]:
    async with spawned(config, model_path, tracker, verifiers=used_verifiers(prompts)) as roles:
        stages = Stages(config, roles=roles, prompts=prompts, course=course, tracker=tracker, store=store)
        return await stages.run(model_path, Path(config.run_dir), resumed)
