"""A real vLLM server of a tiny model, on this CPU and on loopback."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from ring_ray.actors.job_server import free_ports
from ring_ray.engines.vllm_cpu import ENABLE_VARIABLE
from tests.integration.commands import MARK, ROOT, marked

READY_SECONDS = 280
VARIABLES = {
    ENABLE_VARIABLE: "1",
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
OPTIONS = (
    *("--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"),
    *("--max-num-seqs", "16", "--block-size", "16", "--kv-cache-memory-bytes", str(64 << 20)),
)


@dataclass(frozen=True)
class Server:
    url: str
    key: str  # that it asks for below /v1


@contextmanager
def vllm_server(path: str, *options: str) -> Iterator[Server]:
    """Serve the model at ``path`` as "tiny"; at the end assert that no process of it is left."""
    (port,) = free_ports(1)
    key, mark = secrets.token_hex(16), secrets.token_hex(8)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("vllm"), "serve", path, "--port", str(port), *OPTIONS, *options],
            cwd=ROOT,
            env=os.environ | VARIABLES | {"VLLM_API_KEY": key, MARK: mark},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        server = Server(f"http://127.0.0.1:{port}", key)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not _ready(server):
                assert process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            _, alive = psutil.wait_procs(marked(mark), timeout=60)
            for one in alive:
                one.kill()
            process.wait()
            log.seek(0)
            print(log.read()[-5000:])  # pytest shows it where a test failed
            assert not alive


def _ready(server: Server) -> bool:
    try:
        with urlopen(f"{server.url}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False
