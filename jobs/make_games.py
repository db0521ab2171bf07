"""Write puzzles of logic games, by seed and difficulty, to a Parquet file: data=jsonl data.path=FILE trains on it."""

import argparse
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.generation import generate

LEVELS = ("easy", "medium", "hard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.parquet", help="file to write")
    parser.add_argument(
        "--games", nargs="+", choices=sorted(GAMES), default=sorted(GAMES), metavar="GAME", help="which"
    )
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), metavar="LEVEL", help="which")
    parser.add_argument("--size", type=int, default=100, help="puzzles of each game and level")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same file")
    arguments = parser.parse_args()
    if arguments.size < 1 or arguments.seed < 0:
        parser.error("--size must be at least 1, and --seed not negative")
    if arguments.file.suffix != ".parquet":
        parser.error(f"{arguments.file}: must end in .parquet")
    if not arguments.file.parent.is_dir():
        parser.error(f"{arguments.file}: no such directory")
    kinds = list(product(arguments.games, arguments.levels))
    puzzles = (row for game, level in kinds for row in generate(game, level, seed=arguments.seed, size=arguments.size))
    rows = list(track(puzzles, description="puzzles", total=len(kinds) * arguments.size))
    distinct = list({row["prompt"]: row for row in rows}.values())
    pq.write_table(pa.Table.from_pylist(distinct), arguments.file)
    print(f"{arguments.file}: {len(distinct):,} distinct puzzles of {len(rows):,}")


if __name__ == "__main__":
    main()
