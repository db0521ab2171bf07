"""What a run does, in order: measure the base model, cold start, measure, C3PO, measure."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ring_ray.checkpoint.store import CheckpointStore
from ring_ray.config import RunConfig
from ring_ray.evaluation import Accuracy, evaluate
from ring_ray.health import SkippedSteps
from ring_ray.reinforcement import Reinforcement, TrainingLog
from ring_ray.resume import Resumed
from ring_ray.roles import RecoveryError, Roles, RollBackError
from ring_ray.saver import RunOrigin
from ring_ray.sft import Demonstration, cold_start
from ring_ray.stream import Prompts
from ring_ray.sync import WeightSync
from ring_ray.types import Prompt


class RunLog(TrainingLog, Protocol):
    wandb_id: str  # the run's in W&B

    def note(self, values: Mapping[str, float]) -> None: ...


class RunPrompts(Prompts, Protocol):
    @property
    def held_out(self) -> Many[Prompt]: ...


@dataclass(frozen=True, slots=True)
class Course:
    """What a cold start learns from and is measured on."""

    demonstrations: Iterator[Demonstration]
    probe: Many[Prompt]


class Stages:
    """The stages of one run over its roles. Accuracies are on held-out prompts, one sampled response each."""

    MODELS = ("sft", "model")  # directories that a run leaves: after the cold start, after RL

    def __init__(
        self,
        config: RunConfig,
        *,
        roles: Roles,
        prompts: RunPrompts,
        course: Course | None,
        tracker: RunLog,
        store: CheckpointStore,
    ) -> None:
        """``course`` is None where the run has no cold start. ``store`` takes the checkpoints."""
        self._config, self._roles, self._tracker, self._store = config, roles, tracker, store
        self._prompts, self._course = prompts, course
        self._sync = WeightSync(
            roles.policy, roles.rollout, verify=config.sync.verify_weights, take_turns=config.cluster.take_turns
        )

    async def run(self, model_path: str, run_dir: Path, resumed: Resumed | None = None) -> dict[str, Accuracy]:
        """Returns the accuracy of each stage ("base", "sft", "rl"); leaves the trained model in ``run_dir/model``.

        Without a cold start the "sft" model is the base model. A run that is resumed goes on in the last stage.
        """
        origin = resumed.origin(self._tracker.wandb_id) if resumed else await self._prepare(model_path, run_dir)
        training = Reinforcement(
            self._config,
            origin,
            roles=self._roles,
            sync=self._sync,
            prompts=self._prompts,
            tracker=self._tracker,
            store=self._store,
        )
        await training.run(run_dir / self.MODELS[1], resumed)
        return {**origin.accuracy, "rl": await self._measure("rl")}

    async def _prepare(self, model_path: str, run_dir: Path) -> RunOrigin:
        """All that comes before reinforcement learning."""
        base = sft = await self._measure("base")
        if self._course is not None:
            model_path = await self._persistent_cold_start(model_path, run_dir / self.MODELS[0], self._course)
            sft = await self._measure("sft")
        accuracy = {"base": base, "sft": sft}
        if Path(model_path).exists():  # else it is a model hub's name
            model_path = str(Path(model_path).absolute())
        return RunOrigin(model_path=model_path, accuracy=accuracy, wandb_id=self._tracker.wandb_id)

    async def _measure(self, name: str) -> Accuracy:
        prompts = self._prompts.held_out[: self._config.evaluation.prompts]
        self._tracker.stage(f"evaluation: {name} model on {len(prompts)} held-out prompts")
        accuracy = await self._sync.alongside(evaluate(prompts, self._roles.rollout, self._roles.reward))
        by_domain = accuracy.domains if len(accuracy.domains) > 1 else {}
        self._tracker.note(
            {f"accuracy/{name}": accuracy.value}
            | {f"accuracy/{name}/{domain}": value for domain, value in by_domain.items()}
        )
        if accuracy.unjudged:
            self._tracker.stage(f"  {accuracy.unjudged} responses could not be judged and count neither way")
        return accuracy

    async def _persistent_cold_start(self, model_path: str, target: Path, course: Course) -> str:
        """It has no checkpoint: where a rank of the policy is lost, it begins anew."""
        for _ in range(self._config.recovery.limit):
            try:
                return await self._cold_start(model_path, target, course)
            except RollBackError as error:
                lost = error
                self._tracker.stage(f"{lost}; the cold start begins anew")
        raise RecoveryError(f"{lost}; recovery.limit={self._config.recovery.limit}") from lost

    async def _cold_start(self, model_path: str, target: Path, course: Course) -> str:
        config, roles = self._config, self._roles

        async def probe() -> Accuracy:
            await self._sync.transfer(version=0)
            accuracy = await self._sync.alongside(evaluate(course.probe, roles.rollout, roles.reward))
            await self._sync.rest()
            return accuracy

        self._tracker.stage(f"cold start: demonstrations until accuracy {config.sft.target_accuracy:g}")
        await self._sync.rest()
        steps = await cold_start(
            model_path,
            sft=config.sft,
            train=config.train,
            algo=config.algo,
            demonstrations=course.demonstrations,
            policy=roles.policy,
            skipped=SkippedSteps(config, roles.policy, "sft-step"),
            probe=probe,
            note=self._tracker.note,
        )
        if steps is None:
            self._tracker.stage(
                f"cold start: sft.target_accuracy={config.sft.target_accuracy:g} was not reached in "
                f"sft.max_steps={config.sft.max_steps} steps; reinforcement learning may find little to learn from"
            )
        await roles.policy.save(str(target))
        await self._sync.transfer(version=0)
        return str(target)
