"""Judge the programs of a JSONL file in the sandbox: lines {"problem": {...}, "source": "..."} in, verdicts out."""

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ring_ray.config import ConfigError, SandboxConfig
from ring_ray.rewards.sandbox.batch import judge_lines
from ring_ray.rewards.sandbox.problem import ProblemError


async def judge(path: Path, config: SandboxConfig) -> None:
    """Verdicts go to stdout as they are reached, progress and counts to stderr."""
    counts, console = Counter[str](), Console(stderr=True)
    with path.open(encoding="utf-8") as lines:
        total = sum(1 for _ in lines)
        lines.seek(0)
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=console, disable=sys.stdout.isatty(), redirect_stdout=False) as bar:
            task = bar.add_task(path.name, total=total)
            async for number, reward in judge_lines(lines, config):
                line = {"line": number, "score": reward.score, "verdict": reward.verdict, "reason": reward.reason}
                print(json.dumps(line), flush=True)
                counts[reward.verdict] += 1
                bar.advance(task)
    verdicts = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    console.print(f"{counts.total():,} judged: {verdicts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="JSONL; docs/sandbox.md says what a problem holds")
    parser.add_argument("--workers", type=int, default=SandboxConfig().workers, help="programs that run at a time")
    parser.add_argument("--unsafe-without-isolation", action="store_true", help="DANGEROUS: run code as this user")
    arguments = parser.parse_args()
    try:
        config = SandboxConfig(workers=arguments.workers, unsafe_without_isolation=arguments.unsafe_without_isolation)
        asyncio.run(judge(arguments.file, config))
    except (UnicodeDecodeError, ProblemError) as error:
        sys.exit(f"error: {arguments.file}: {error}")
    except (OSError, ConfigError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
