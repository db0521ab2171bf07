"""TRL's side of `bench_trl`: its virtual environment, and one GRPO training in it.

The module runs in both environments. In TRL's, under torchrun, each process leaves ``output/rank-N.json``.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ring_ray.config import RewardConfig
from ring_ray.rewards.integer import IntegerVerifier
from ring_ray.types import Prompt
from tests.peers import ROOT, environment

REQUIREMENTS = Path(__file__).with_name("trl-requirements.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """How TRL uses the machine."""

    processes: int  # data-parallel
    threads: int  # of torch, in each process
    micro_batches: int  # a step, in each process
    experts: str  # transformers' implementation: "eager", "batched_mm" or "grouped_mm"

    @property
    def name(self) -> str:
        return f"TRL, {self.processes} x {self.threads} threads, {self.micro_batches} micro-batches, {self.experts}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    model: str
    data: str  # JSONL with prompt and answer
    output: str
    steps: int
    prompts: int  # a step, over all processes
    group_size: int
    max_response_tokens: int
    learning_rate: float
    entropy_coefficient: float
    max_grad_norm: float
    setup: Setup


@dataclass(frozen=True, slots=True)
class Record:
    """What a process leaves."""

    ends: Many[float]  # of each step, seconds
    lengths: Many[Many[int]]  # of the responses that each step trained


def call(command: Many[str | Path], log: Path, threads: int) -> None:
    """Run ``command`` in the repository. Raises RuntimeError with the end of its output where it fails."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that spins would keep the one that it waits for from running
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w") as output:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode
    if status:
        raise RuntimeError(f"{command} ended with status {status}:\n{log.read_text()[-4000:]}")


def train(settings: Settings) -> Record:
    """All processes' record of one training, in processes of its own."""
    values = json.dumps(asdict(settings))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings.setup.processes}"]
    command = [environment(REQUIREMENTS) / "python", *torchrun, "-m", __name__, values]
    call(command, Path(settings.output) / "log.txt", settings.setup.threads)
    ranks = [Record(**json.loads(path.read_text())) for path in sorted(Path(settings.output).glob("rank-*.json"))]
    lengths = [[n for rank in ranks for n in rank.lengths[step]] for step in range(settings.steps)]
    return Record(ends=ranks[0].ends, lengths=lengths)


class Recorder(TrainerCallback):
    """Notes the end of every step, and as the reward function the lengths of what was sampled."""

    __name__ = "integer"  # TRL logs rewards under it

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.lengths: list[list[int]] = []
        self._verifier = IntegerVerifier(RewardConfig())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float]:
        self.lengths.append([len(ids) for ids in completion_ids])
        return [
            self._verifier.verify(_prompt(expected), completion[0]["content"]).score
            for completion, expected in zip(completions, answer, strict=True)
        ]


def _prompt(answer: str) -> Prompt:
    return Prompt(index=0, id="", domain="", text="", token_ids=None, verifier="integer", answer=answer)


def config(settings: Settings) -> Any:
    """TRL's configuration."""
    from trl import GRPOConfig

    setup = settings.setup
    responses = settings.prompts * settings.group_size // setup.processes // setup.micro_batches
    return GRPOConfig(
        output_dir=settings.output,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "experts_implementation": setup.experts},
        per_device_train_batch_size=responses,
        gradient_accumulation_steps=setup.micro_batches,
        num_generations=settings.group_size,
        max_completion_length=settings.max_response_tokens,
        temperature=1.0,
        beta=0.0,
        entropy_coef=settings.entropy_coefficient,
        router_aux_loss_coef=0.0,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        max_steps=settings.steps,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def main() -> None:
    from datasets import load_dataset
    from trl import GRPOTrainer

    values = json.loads(sys.argv[1])
    settings = Settings(**values | {"setup": Setup(**values["setup"])})
    torch.set_num_threads(settings.setup.threads)
    rows = load_dataset("json", data_files=settings.data, split="train", cache_dir=f"{settings.output}/cache")
    chats = rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    recorder = Recorder()
    trainer = GRPOTrainer(
        model=settings.model,
        reward_funcs=recorder,
        args=config(settings),
        train_dataset=chats,
        callbacks=[recorder],
    )
    trainer.train()
    record = Record(ends=recorder.ends, lengths=recorder.lengths)
    Path(settings.output, f"rank-{os.environ['RANK']}.json").write_text(json.dumps(asdict(record)))


if __name__ == "__main__":
    main()
