"""Every attack is contained: it ends as it must, the next program is unaffected, and nothing of it is left."""

import asyncio
import os
import select
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.execution import Ending, Task, program_limits
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.types import Verdict
from tests.conftest import Run
from tests.integration.sandbox_attacks import ATTACKS
from tests.integration.sandbox_attacks.attack import ESCAPED, Attack

CONFIG = SandboxConfig(
    workers=1, cpu_seconds=1, wall_seconds=60, memory_mib=256, output_mib=1, disk_mib=8, processes=32
)
HURRIED = replace(CONFIG, wall_seconds=2)  # for those that would take all the time there is
SECRET = "what only the judge knows"
EARLIER = "the earlier submission"


@pytest.fixture(scope="module")
def sandbox(run: Run) -> Iterator[Sandbox]:
    """One worker, so that every attack is followed by the next program in the same one."""
    os.environ["RING_RAY_SECRET"] = SECRET
    sandbox = Sandbox(CONFIG)
    run(sandbox.__aenter__())
    yield sandbox
    run(sandbox.__aexit__(None, None, None))
    del os.environ["RING_RAY_SECRET"]


@pytest.fixture(scope="module")
def listeners() -> Iterator[list[socket.socket]]:
    """What the network attacks would reach: a server, and abstract sockets for connections and for datagrams."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        for abstract in (local, datagrams):
            abstract.bind(f"\0ring_ray-attack-{os.getpid()}")
        local.listen()
        for listener in (server, local, datagrams):
            listener.setblocking(False)
        yield [server, local, datagrams]


@pytest.fixture
def facts(listeners: list[socket.socket]) -> Iterator[dict[str, str]]:
    with tempfile.NamedTemporaryFile("w", prefix="ring_ray-secret-", suffix=".txt") as file:
        file.write(SECRET)
        file.flush()
        os.chmod(file.name, 0o644)
        yield {
            "PORT": str(listeners[0].getsockname()[1]),
            "SECRET": SECRET,
            "SECRET_FILE": file.name,
            "JUDGE": str(os.getpid()),
            "EARLIER": EARLIER[::-1],
        }


def python(source: str, config: SandboxConfig = CONFIG) -> Task:
    return Task(kind="python", limits=program_limits(config), files={"main.py": source.encode()})


def processes() -> set[int]:
    """What this process has started, directly or not."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def files() -> set[Path]:
    found = {path for directory in ("/tmp", "/dev/shm", "/var/tmp") for path in Path(directory).glob("*left-over*")}
    return found | set(Path(tempfile.gettempdir()).glob("ring_ray-sandbox-*"))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_contained(
    attack: Attack, sandbox: Sandbox, facts: dict[str, str], listeners: list[socket.socket], run: Run
) -> None:
    judged_by, left = os.getpid(), files()
    run(sandbox.run(python(f"text = {EARLIER + '12345678'!r}")))
    before = processes()

    source = attack.program(facts)
    if attack.problem is not None:
        reward = run(Judge(sandbox, CONFIG).judge(attack.problem, source))
        assert (reward.score, reward.verdict) == (0, Verdict.WRONG), reward.reason
    else:
        config = HURRIED if Ending.TIME_LIMIT in attack.endings else CONFIG
        attacked = run(sandbox.run(python(source, config)))
        assert attacked.ending in attack.endings, (attacked.reason, attacked.stderr[-500:])
        assert ESCAPED.encode() not in attacked.stdout, attacked.stdout
        assert SECRET.encode() not in attacked.stdout

    after = run(sandbox.run(python("import os\nprint(sorted(os.listdir('.')), 6 * 7)")))
    assert (after.ending, after.stdout) == (Ending.DONE, b"['main.py'] 42\n")
    assert processes() == before, "the same worker, and nothing else"
    assert files() == left
    assert os.getpid() == judged_by
    assert Path(facts["SECRET_FILE"]).read_text() == SECRET
    assert not select.select(listeners, [], [], 0)[0]


def test_there_are_enough_of_them() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40


def test_attacks_beside_each_other_disturb_nobody(run: Run) -> None:
    """Right programs get the right verdict while their neighbours are bombs."""
    bombs = [attack for attack in ATTACKS if "bomb" in attack.name]

    async def beside() -> list[bytes]:
        async with Sandbox(replace(CONFIG, workers=2)) as two:
            attacks = [asyncio.create_task(two.run(python(bomb.program({}), HURRIED))) for bomb in bombs]
            answers = [(await two.run(python("print(6 * 7)"))).stdout for _ in range(10)]
            await asyncio.gather(*attacks)
            return answers

    assert run(beside()) == [b"42\n"] * 10


def test_a_killed_judge_leaves_no_process(run: Run) -> None:
    """bubblewrap's processes die with the one that started them."""
    ready, tell = os.pipe()
    judge = os.fork()
    if judge == 0:

        async def serve() -> None:
            async with Sandbox(CONFIG) as sandbox:
                running = asyncio.create_task(sandbox.run(python("import time\ntime.sleep(60)")))
                await sandbox_busy(running)
                os.write(tell, b"x")
                await running

        async def sandbox_busy(running: "asyncio.Task[object]") -> None:
            while len(processes()) < 4 and not running.done():  # bubblewrap, its first process, the worker, the box
                await asyncio.sleep(0.01)

        try:
            asyncio.run(serve())
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    family = psutil.Process(judge).children(recursive=True)
    os.kill(judge, signal.SIGKILL)
    os.waitpid(judge, 0)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
