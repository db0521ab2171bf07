"""Write small exercises of five domains to a directory, by seed: what experiment=mixture trains on."""

import argparse
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from ring_ray.config import DataConfig
from ring_ray.data.exercises import choices, instructions, programs
from ring_ray.data.sums import generate_sums
from ring_ray.rewards.games.generation import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("outputs/mixture-data"), help="where to")
    parser.add_argument("--size", type=int, default=4000, help="rows of each domain; equal prompts are written once")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    arguments = parser.parse_args()
    if arguments.size < 1 or arguments.seed < 0:
        parser.error("--size must be at least 1, and --seed not negative")
    if arguments.directory.exists() and not arguments.directory.is_dir():
        parser.error(f"{arguments.directory}: is no directory")
    size, seed = arguments.size, arguments.seed
    sums = (
        {
            "prompt": row.text,
            "answer": row.answer,
            "domain": "math",
            "verifier": row.verifier,
            "demonstration": row.demonstration,
        }
        for row in generate_sums(replace(DataConfig(), size=size), seed)
    )
    domains = {
        "math": sums,
        "science": choices(size, seed),
        "code": programs(size, seed),
        "games": generate("maze", "easy", seed=seed, size=size),
        "instructions": instructions(size, seed),
    }
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for domain, rows in domains.items():
        distinct = {row["prompt"]: row for row in track(rows, description=domain, total=size)}
        pq.write_table(pa.Table.from_pylist([*distinct.values()]), arguments.directory / f"{domain}.parquet")
        print(f"{arguments.directory / domain}.parquet: {len(distinct):,} distinct prompts of {size:,}")


if __name__ == "__main__":
    main()
