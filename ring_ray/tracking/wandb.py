"""W&B: a mirror of the run that may be slow, broken or away without the training noticing."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeAlias

import wandb

from ring_ray.checkpoint.store import MANIFEST
from ring_ray.config import WANDB_MODES, RunConfig
from ring_ray.metrics import FAMILIES, METRICS, Values
from ring_ray.tracking.files import Row

logger = logging.getLogger(__name__)

Task: TypeAlias = Callable[[wandb.Run], object]

CHECKOUT = Path(__file__).parents[2]  # where a run's git commit comes from, wherever its directory is
# How long the end of a run may wait for W&B; what is on disk can be synced later.
INIT_SECONDS, FINISH_SECONDS, UPLOAD_SECONDS, GRACE_SECONDS = 30, 30, 3600, 30


def wandb_mode(wanted: str) -> str:
    """What ``tracking.wandb`` comes to: "auto" is the mode of WANDB_MODE, if that is one of ours."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    return asked if wanted == "auto" and asked in WANDB_MODES else wanted


class WandbSink:
    """A W&B run inside the run directory, on a thread of its own.

    Whoever logs only queues: nobody waits for W&B, whose calls may block on the network. A run that can't start online
    is kept offline. Failures are counted, said once, and never stop the training.
    """

    def __init__(self, config: RunConfig, run_id: str, say: Callable[[str], None]) -> None:
        """Online the run ``run_id`` begins, or goes on if W&B has it.

        Offline every session is a run of its own: of two with one id W&B keeps what is sent last, and what was tried
        online can't be made offline under its id.

        ``say`` tells the user where the run is, and how to send it where it is on disk only.
        """
        self.failures = 0
        self._config, self._run_id, self._say = config, run_id, say
        self._finish_seconds = UPLOAD_SECONDS if config.tracking.artifacts else FINISH_SECONDS
        self._tasks = SimpleQueue[Task | None]()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, values: Values) -> None:
        row = dict(values)
        self._tasks.put(lambda run: run.log(row))

    def rollouts(self, step: int, rows: Sequence[Row]) -> None:
        """A table of ``rows``, which all have the same columns."""
        self._tasks.put(partial(_log_table, step, rows))

    def artifacts(self, directories: Iterable[Path]) -> None:
        """Upload directories of models and checkpoints, which must then stay as they are."""
        for directory in directories:
            self._tasks.put(partial(_upload, directory))

    def close(self, *, failed: bool) -> None:
        """Wait, though not for ever, until W&B has all that was logged. Idempotent."""
        self._tasks.put(lambda run: self._finish(run, failed))
        self._tasks.put(None)
        self._thread.join(timeout=INIT_SECONDS + self._finish_seconds + GRACE_SECONDS)
        if self._thread.is_alive():
            logger.warning("W&B did not end in time: its last records may be missing. metrics.jsonl has every step.")

    def _work(self) -> None:
        run: wandb.Run | None = None
        with self._tolerated():
            run = self._start()
        while task := self._tasks.get():
            with self._tolerated():
                if run:
                    task(run)
        with self._tolerated():
            # Left to its exit hook, it would raise where `ray job stop` has ended W&B's process.
            wandb.teardown()

    def _start(self) -> wandb.Run:
        wandb.setup(
            wandb.Settings(
                silent=True,
                console="off",
                git_root=str(CHECKOUT),
                init_timeout=INIT_SECONDS,
                finish_timeout=self._finish_seconds,
                finish_timeout_raises=True,
            )
        )
        with self._tolerated():
            if self._online():
                run = self._init("online")
                self._say(f"W&B: {run.url}")
                return run
        return self._init("offline")

    def _online(self) -> bool:
        wanted = wandb_mode(self._config.tracking.wandb)
        if wanted == "offline":
            return False
        key = wandb.login(prompt=False, verify=False)
        if wanted == "online" and not key:
            raise wandb.Error("W&B is to be online, but there is no key: `wandb login` stores one")
        return key

    def _init(self, mode: Literal["online", "offline"]) -> wandb.Run:
        config = self._config
        run = wandb.init(
            project=config.tracking.project,
            entity=config.tracking.entity,
            id=self._run_id if mode == "online" else None,
            resume="allow" if mode == "online" else None,
            name=Path(config.run_dir).name,
            group=config.tracking.group,
            job_type="train" if config.tracking.job_number is None else "sweep",
            dir=config.run_dir,
            mode=mode,
            config=asdict(config),
            reinit="create_new",
        )
        families = {metric.name.split("/")[0] for metric in (*METRICS, *FAMILIES)} - {"step"}
        for family in sorted(families):
            run.define_metric(f"{family}/*", step_metric="step")
        run.define_metric("sft/*", step_metric="sft/step")
        run.define_metric("ledger/trained", step_metric="step", summary="last")  # the other x-axis
        return run

    def _finish(self, run: wandb.Run, failed: bool) -> None:
        directory, complete = run.settings.sync_dir, False
        with self._tolerated():
            run.finish(exit_code=int(failed))  # raises TimeoutError where the network is too slow or gone
            complete = not run.offline
        if not complete:
            self._say(f"W&B: this run is on disk only, send it with: wandb sync {directory}")

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - W&B only mirrors metrics.jsonl: nothing in it may end a run
            self.failures += 1
            if self.failures == 1:
                logger.warning("W&B: %s. The run goes on; metrics.jsonl has every step.", error)


def _log_table(step: int, rows: Sequence[Row], run: wandb.Run) -> None:
    """One small table a step: W&B's incremental table repeats in each increment where all earlier ones are."""
    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    run.log({"step": step, "rollouts": table})


def _upload(directory: Path, run: wandb.Run) -> None:
    kind = "checkpoint" if (directory / MANIFEST).exists() else "model"
    artifact = wandb.Artifact(f"run-{run.id}-{directory.name}", type=kind)
    artifact.add_dir(str(directory), policy="immutable")  # without a copy of the weights in W&B's cache
    run.log_artifact(artifact)
