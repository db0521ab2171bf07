"""Rows of a local JSONL or Parquet file. Every fault is an error that names the file and the line."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ring_ray.config import DataConfig
from ring_ray.data.rows import DataError, Row, parse_row


def read_rows(path: str, key: str, data: DataConfig, verifiers: Collection[str]) -> list[Row]:
    """All rows of the file, in order. ``key`` is the setting that named it, for errors. Raises `DataError`."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{key}={path!r}: no such file")
    readers = {".jsonl": _read_json_lines, ".json": _read_json_lines, ".parquet": _read_parquet}
    if file.suffix not in readers:
        raise DataError(f"{key}={path!r}: must end in {', '.join(readers)}")
    records = readers[file.suffix](file)
    rows = [parse_row(record, f"{file.name}:{line}", data, verifiers) for line, record in enumerate(records, start=1)]
    if not rows:
        raise DataError(f"{key}={path!r}: the file has no rows")
    return rows


def _read_json_lines(file: Path) -> Iterator[object]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise DataError(f"{file.name}:{number}: empty row")
            try:
                yield json.loads(line.rstrip())
            except ValueError as error:  # malformed JSON or text that is not UTF-8
                raise DataError(f"{file.name}:{number}: each line must be one JSON object: {error}") from error


def _read_parquet(file: Path) -> Iterator[object]:
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.name}: not a readable Parquet file: {error}") from error
