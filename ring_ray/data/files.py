"""Rows of local JSONL and Parquet files. Every fault is an error that names the file and the line."""

import json
import os.path
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ring_ray.config import DataConfig
from ring_ray.data.rows import DataError, Row, parse_row


def read_rows(path: str, key: str, data: DataConfig, verifiers: Collection[str]) -> list[Row]:
    """All rows of the file, or of the files in the directory, in order of their names.

    ``key`` is the setting that named it, for errors. Raises `DataError`.
    """
    if not os.path.isdir(path):  # Path's own raises an error for what can be no name
        return _read_file(path, key, data, verifiers)
    files = sorted(file for file in Path(path).iterdir() if file.suffix in _READERS)
    if not files:
        raise DataError(f"{key}={path!r}: no file in it ends in {', '.join(_READERS)}")
    return [row for file in files for row in _read_file(str(file), key, data, verifiers)]


def _read_file(path: str, key: str, data: DataConfig, verifiers: Collection[str]) -> list[Row]:
    file = Path(path)
    if not os.path.isfile(path):
        raise DataError(f"{key}={path!r}: no such file or directory")
    if file.suffix not in _READERS:
        raise DataError(f"{key}={path!r}: must end in {', '.join(_READERS)}")
    records = _READERS[file.suffix](file)
    try:
        rows = [parse_row(record, f"{file.name}:{line}", data, verifiers) for line, record in enumerate(records, 1)]
    except OSError as error:
        raise DataError(f"{key}={path!r}: can't be read: {error}") from error
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
            except (ValueError, RecursionError) as error:  # malformed, not UTF-8, or nested without end
                raise DataError(f"{file.name}:{number}: each line must be one JSON object: {error}") from error


def _read_parquet(file: Path) -> Iterator[object]:
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                for scalars in zip(*batch.columns, strict=True):
                    number += 1
                    named = zip(batch.schema.names, scalars, strict=True)
                    yield {name: _value(scalar, f"{file.name}:{number}: {name}") for name, scalar in named}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last by a name of a column
        raise DataError(f"{file.name}: not a readable Parquet file: {error}") from error


def _value(scalar: pa.Scalar, what: str) -> object:
    try:
        return scalar.as_py()
    except (ArithmeticError, LookupError, ValueError) as error:  # bytes that are not UTF-8, a date too far off
        raise DataError(f"{what} can't be read: {error}") from error


_READERS = {".jsonl": _read_json_lines, ".json": _read_json_lines, ".parquet": _read_parquet}
