"""The project's data types as MessagePack, numpy arrays included. No pickle: reading a file can't run code."""

from typing import Any, TypeVar, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Dataclasses, dicts, tuples, enums, numbers, text and arrays; raises `TypeError` for anything else."""
    return msgspec.msgpack.encode(value, enc_hook=_fields_of_array)


def decode(data: bytes, type: type[T]) -> T:
    """What `encode` was given; arrays are read-only.

    Raises:
        ValueError: ``data`` is cut short, or is not a ``type`` down to the dtype of every array.
    """
    try:
        return msgspec.msgpack.decode(data, type=type, dec_hook=_array)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"can't read {len(data)} bytes as {type}: {error}") from error


def _fields_of_array(array: object) -> tuple[str, tuple[int, ...], bytes]:
    """Its dtype, shape and C-ordered data."""
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise TypeError(f"can't encode {array!r}")
    return array.dtype.str, array.shape, array.tobytes()


def _array(type: Any, fields: object) -> npt.NDArray[Any]:
    """Of the dtype that ``type``, a `numpy.typing.NDArray`, declares."""
    if get_origin(type) is not np.ndarray:
        raise TypeError(f"can't decode {type}")
    dtype, shape, data = msgspec.convert(fields, tuple[str, tuple[int, ...], bytes])
    _, dtype_type = get_args(type)
    declared = np.dtype(*get_args(dtype_type))
    if dtype != declared.str:
        raise ValueError(f"an array of {dtype} where one of {declared.str} was expected")
    return np.frombuffer(data, declared).reshape(shape)
