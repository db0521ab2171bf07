"""The processes of a run, seen from the outside."""

import re
from pathlib import Path

import psutil

from tests.integration.commands import Command, command_line

ACTOR = re.compile(r"ray::(?:.*:)?(\w+)Worker\b(?:\.(\w+))?")  # how Ray calls an actor's process: class and method
KINDS = ("driver", "rollout", "engine", "reward", "buffer", "policy", "reference")


def kind_of(title: str) -> str | None:
    """The kind of a process by its command line, None for one that is nobody's role."""
    if title.startswith("VLLM::"):
        return "engine"
    actor = ACTOR.match(title)
    return actor[1].lower() if actor else None


def name_of(title: str) -> str:
    """For people: of a role its kind, of others the program, of Python its script."""
    words = title.split() or ["?"]
    if title.startswith("ray::") or not Path(words[0]).name.startswith("python"):
        return kind_of(title) or Path(words[0]).name
    named = [word for word in words[1:] if not word.startswith("-")]
    return "python" if "-c" in words or not named else Path(named[0]).name


def processes(command: Command) -> dict[str, list[psutil.Process]]:
    """Of a run that goes on, by kind."""
    found: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(command.process.pid)]}
    for process in command.descendants():
        if kind := kind_of(command_line(process)):
            found.setdefault(kind, []).append(process)
    return found


def at_work(command: Command) -> set[str]:
    """What the actors are doing, such as "policy.update"."""
    titles = (ACTOR.match(command_line(process)) for process in command.descendants())
    return {f"{title[1].lower()}.{title[2]}" for title in titles if title and title[2]}
