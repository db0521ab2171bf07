"""What the judge asks a worker in the sandbox, and what the worker answers: a JSON object in one packet each.

No program, input or output is in a packet: they are files in memory whose descriptors travel beside it, and the worker
never reads them. So a worker has nothing of an earlier submission in the memory that the next one is forked from.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["command", "python", "function", "unit_tests"]
PACKET_BYTES = 65_536
STREAMS = ("stdin", "stdout", "stderr", "result")  # the first descriptors of a request; then its files, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use on one test, with everything that it starts."""

    cpu_seconds: float  # of each process
    wall_seconds: float  # of the whole
    memory_bytes: int  # of the whole
    output_bytes: int  # of each file and stream
    disk_bytes: int  # of all files
    processes: int  # threads included
    files: int  # open at a time, of each process
    # None for a virtual machine that reserves much more than it uses; memory_bytes holds all the same
    address_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``id`` is drawn anew for each request; an answer to another one is no answer."""

    id: str
    kind: Kind
    limits: Limits
    command: list[str] = field(default_factory=list)
    entry: str = ""  # of kind "function": what is called
    files: list[str] = field(default_factory=list)  # names below /tmp

    def packet(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, packet: bytes) -> "Request":
        fields = json.loads(packet)
        return cls(**fields | {"limits": Limits(**fields["limits"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    id: str
    status: int | None  # as of os.waitpid; None where the program was killed for `stopped`, or never began
    stopped: Literal["", "time", "memory"]
    failed: str  # why the program never began: the sandbox's fault, not the program's
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int  # the most that was seen; between two looks there may have been more

    def packet(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, packet: bytes) -> "Answer":
        return cls(**json.loads(packet))
