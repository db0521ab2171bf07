"""What Ray's types do not say of remote calls."""

from typing import TypeVar, cast

from ray import ObjectRef

First = TypeVar("First")
Second = TypeVar("Second")


def two_refs(call: ObjectRef[tuple[First, Second]]) -> tuple[ObjectRef[First], ObjectRef[Second]]:
    """The refs that a call of a method with ``num_returns=2`` really returns: the first can travel on unopened."""
    return cast("tuple[ObjectRef[First], ObjectRef[Second]]", call)
