"""Objects in another process, for unit tests: those of the submission in the tests, and functions of the tests there.

A call sends plain values over and plain values come back; anything else stays where it is, and a number stands for it.
A call that returns None has perhaps changed what it was given, as list.sort does: then that comes back as well.
"""

import builtins
import json
import operator
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from ring_ray.rewards.sandbox.inside import values

SUBMISSION = 0  # the number of its module
_OF_ONE: dict[str, Callable[..., Any]] = {
    **{"abs": abs, "bool": bool, "float": float, "hash": hash, "int": int, "iter": iter, "len": len, "next": next},
    **{"repr": repr, "str": str, "neg": operator.neg},
    **{"getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem},
    "enter": lambda target: type(target).__enter__(target),
}
# With a plain value at their right these would show the submission what is expected, and leave the verdict to it.
_OF_TWO: dict[str, Callable[..., Any]] = {
    name: getattr(operator, f"__{name}__")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lt", "le", "gt", "ge")
}


class UnsupportedError(BaseException):
    """The tests ask what can't be asked of another process. Not an Exception: tests expect those."""


class Peer:
    """One end of a channel, one line of JSON each way at a time. Whom it asks may ask back before it answers.

    Numbers from 0 are objects of the submission, those below are the tests'.
    """

    OPERATIONS: ClassVar[Mapping[str, Callable[..., Any]]]  # that the other one may ask for

    def __init__(self, connection: socket.socket) -> None:
        self._reader = connection.makefile("r", encoding="utf-8")
        self._writer = connection.makefile("w", encoding="utf-8")
        self._lent = list[object]()
        self._exception_kinds = dict[str, type[Exception]]()

    def number(self, value: object) -> int:
        """What stands for a value that is not plain."""
        raise NotImplementedError

    def meant(self, number: int) -> object:
        """What such a number stands for."""
        raise NotImplementedError

    def ask(self, number: int, operation: str, /, *arguments: object, **keywords: object) -> Any:
        """Raises what the operation raises, of a kind as `exception_kind` makes it, and ConnectionError."""
        self._send({"ask": values.dumps((number, operation, arguments, keywords), self.number)})
        while line := self._reader.readline():
            try:
                message = json.loads(line)
                question, value, changed, raised = map(message.get, ("ask", "value", "changed", "raised"))
                if isinstance(value, str):
                    answer = values.loads(value, self.meant)
                    if answer is None and isinstance(changed, str):
                        _update([*arguments, *keywords.values()], values.loads(changed, self.meant))
                    return answer
            except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
                raise ConnectionError("the other process answered what is no answer") from error
            if isinstance(question, str):
                self._answer(question)
            elif raised is not None:
                raise self._raised(raised)
        raise ConnectionError("the other process has ended")

    def serve(self) -> None:
        """Answer until the other end is closed."""
        while line := self._reader.readline():
            self._answer(json.loads(line)["ask"])

    def _answer(self, question: str) -> None:
        try:
            number, operation, arguments, keywords = values.loads(question, self.meant)
            value = self.OPERATIONS[operation](self.meant(number), *arguments, **keywords)
            answer: dict[str, object] = {"value": values.dumps(value, self.number)}
            if value is None:
                answer["changed"] = values.dumps([*arguments, *keywords.values()], self.number)
        except Exception as error:  # noqa: BLE001  (whatever is raised, it is for the one who asked)
            answer = {"raised": [_ancestry(type(error)), str(error)[:1000]]}
        self._send(answer)

    def exception_kind(self, ancestry: list[str]) -> type[Exception]:
        """Of such names: Python's own, or one that stands for the other process's, always the same."""
        name, *bases = ancestry
        known = getattr(builtins, name, None)
        if isinstance(known, type) and issubclass(known, Exception):  # never SystemExit
            return known
        if name not in self._exception_kinds:
            self._exception_kinds[name] = type(name, (self.exception_kind(bases),), {})
        return self._exception_kinds[name]

    def _raised(self, raised: object) -> Exception:
        match raised:
            case [list(ancestry), str(message)]:
                with suppress(ValueError, TypeError, RecursionError):  # no names of exceptions
                    kind = self.exception_kind(ancestry)
                    return kind.__new__(kind, message)  # some are initialized with more than a message
        return ConnectionError("the other process raised what is no exception")

    def _send(self, message: dict[str, object]) -> None:
        self._writer.write(json.dumps(message) + "\n")
        self._writer.flush()


def _update(given: Sequence[object], changed: Sequence[object]) -> None:
    for one, other in zip(given, changed, strict=True):
        if isinstance(one, list | deque) and isinstance(other, list | deque):
            one.clear()
            one.extend(other)
        elif isinstance(one, dict | set) and isinstance(other, dict | set):
            one.clear()
            one.update(other)


def _ancestry(kind: type) -> list[str]:
    """Its name and those of what it derives from, up to the first that is Python's own."""
    names = [ancestor.__name__ for ancestor in kind.__mro__]
    own = [getattr(builtins, ancestor.__name__, None) is ancestor for ancestor in kind.__mro__]
    return names[: own.index(True) + 1]  # all derive from `object`


def _names(module: object) -> list[tuple[str, list[str]]]:
    """With the ancestry of those that are kinds of exceptions, else with an empty one."""
    found = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    return [
        (name, _ancestry(value) if isinstance(value, type) and issubclass(value, Exception) else [])
        for name, value in found.items()
    ]


def _call(target: Any, /, *arguments: object, **keywords: object) -> object:
    return target(*arguments, **keywords)


class SubmissionPeer(Peer):
    """In the submission's process. It lends whatever it has, its module first."""

    OPERATIONS: ClassVar = {
        **_OF_ONE,
        **_OF_TWO,
        "call": _call,
        "get": getattr,
        "set": setattr,
        "names": _names,
        "equal": lambda target, other: bool(target == other),
        "contains": operator.contains,
        "isinstance": lambda kind, item: isinstance(item, kind),
        "exit": lambda target: type(target).__exit__(target, None, None, None),
    }

    def __init__(self, connection: socket.socket, module: object) -> None:
        super().__init__(connection)
        self._lent.append(module)

    def number(self, value: object) -> int:
        if isinstance(value, TestsFunction):
            return value.number
        self._lent.append(value)
        return len(self._lent) - 1

    def meant(self, number: int) -> object:
        return self._lent[number] if number >= 0 else TestsFunction(self, number)


class TestsFunction:
    """A function of the tests, in the submission's process."""

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer, self.number = peer, number

    def __call__(self, /, *arguments: object, **keywords: object) -> Any:
        return self._peer.ask(self.number, "call", *arguments, **keywords)


class TestsPeer(Peer):
    """In the tests' process. It lends functions, and nobody may do anything with them but call them."""

    OPERATIONS: ClassVar = {"call": _call}

    def number(self, value: object) -> int:
        if isinstance(value, Remote):
            return int(value._remote_number)
        if not callable(value):
            raise UnsupportedError(f"a test passes a {type(value).__name__} to the submission, which has no such thing")
        self._lent.append(value)
        return -len(self._lent)

    def meant(self, number: int) -> object:
        if number >= 0:
            return Remote(self, number)
        return self._lent[-1 - number]


class Remote:
    """Something of the submission's, in the tests' process. It is never equal to, less than or in a plain value.

    So a submission can't return "what equals everything".
    """

    def __init__(self, peer: TestsPeer, number: int) -> None:
        self.__dict__.update(_remote_peer=peer, _remote_number=number)

    def __call__(self, /, *arguments: object, **keywords: object) -> Any:
        return self._remote_peer.ask(self._remote_number, "call", *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._remote_peer.ask(self._remote_number, "get", name)

    def __setattr__(self, name: str, value: object) -> None:
        self._remote_peer.ask(self._remote_number, "set", name, value)

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, Remote):  # it would be told what is expected
            raise TypeError("whether a plain value is in an object of the submission can't be asked: compare lists")
        return self._remote_peer.ask(self._remote_number, "contains", item) is True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._remote_peer.ask(self._remote_number, "equal", other) is True

    def __instancecheck__(self, item: object) -> bool:
        return isinstance(item, Remote) and self._remote_peer.ask(self._remote_number, "isinstance", item) is True

    def __mro_entries__(self, _: object) -> tuple[type, ...]:
        raise UnsupportedError("a test derives a class from one of the submission's")

    def __exit__(self, *_: object) -> None:
        """What went wrong in the block is not the submission's to know, nor to forgive."""
        self._remote_peer.ask(self._remote_number, "exit")


def _forward(name: str) -> Callable[..., Any]:
    return lambda remote, *arguments: remote._remote_peer.ask(remote._remote_number, name, *arguments)


def _forward_among_remotes(name: str) -> Callable[..., Any]:
    def forward(remote: Remote, other: object) -> Any:
        return (
            remote._remote_peer.ask(remote._remote_number, name, other) if isinstance(other, Remote) else NotImplemented
        )

    return forward


for _name in _OF_ONE:
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in _OF_TWO:
    setattr(Remote, f"__{_name}__", _forward_among_remotes(_name))
