"""How a program of each language is compiled and run. Paths are relative to the empty /tmp that a program starts in."""

import shutil
from dataclasses import dataclass
from typing import Literal

from ring_ray.rewards.sandbox.inside.programs import MAIN, TESTS

Language = Literal["python", "cpp", "java"]
SYSTEM_PATH = "/usr/bin:/bin"  # of the sandbox, which sees nothing else
PROGRAM = "program"  # what a compiler makes, and what is then run


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """Of a compiled language. ``source`` is the entry point's file, ``part`` the other one where there are two."""

    compiler: str
    package: str  # Debian's, that has the compiler
    source: str
    part: str
    compile: str  # a shell command that writes what it made to descriptor 3
    run: tuple[str, ...]
    reserves_address_space: bool = False  # much more than it uses: only the memory in use can be limited


TOOLCHAINS = {  # Python needs none: the worker is its interpreter
    "cpp": Toolchain(
        compiler="g++",
        package="g++",
        source="main.cpp",
        part="solution.hpp",
        compile=f"g++ -std=c++20 -O2 -pipe -o {PROGRAM} main.cpp && cat {PROGRAM} >&3",
        run=(f"./{PROGRAM}",),
    ),
    "java": Toolchain(
        compiler="javac",
        package="default-jdk-headless",
        source="Main.java",
        part="Solution.java",
        compile="javac -J-Xshare:auto -J-XX:TieredStopAtLevel=1 -encoding UTF-8 -d classes *.java"
        f" && jar --create --no-compress --file {PROGRAM} -C classes . && cat {PROGRAM} >&3",
        run=("java", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss64m"),
        reserves_address_space=True,
    ),
}


def missing(language: str) -> str | None:
    """Why a language can't be judged here, and what to install."""
    toolchain = TOOLCHAINS.get(language)
    if toolchain is None or shutil.which(toolchain.compiler, path=SYSTEM_PATH):
        return None
    return f"{language} needs {toolchain.compiler} to be judged: apt install {toolchain.package}"


def run_command(language: str, memory_bytes: int) -> list[str]:
    """Of what was compiled. A Java heap gets three quarters: the machine itself needs the rest."""
    command = list(TOOLCHAINS[language].run)
    if language == "java":
        command += [f"-Xmx{memory_bytes * 3 // 4 >> 20}m", "-cp", PROGRAM, "Main"]
    return command


def source_files(language: str, source: str, harness: str = "") -> dict[str, bytes]:
    """The submission as files; with a harness, that is the program, and the submission the part that it uses."""
    if language == "python":
        return {MAIN: (f"{source}\n\n{harness}" if harness else source).encode("utf-8", "surrogatepass")}
    toolchain = TOOLCHAINS[language]
    texts = {toolchain.source: harness, toolchain.part: source} if harness else {toolchain.source: source}
    return {name: text.encode("utf-8", "surrogatepass") for name, text in texts.items()}


def test_files(source: str, tests: str) -> dict[str, bytes]:
    """Unit tests beside what they test, which the submission's process never sees."""
    return source_files("python", source) | {TESTS: tests.encode("utf-8", "surrogatepass")}
