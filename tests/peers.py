"""Virtual environments of packages that ring_ray is compared with, and never installed beside."""

import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(requirements: Path) -> Path:
    """The bin directory of the environment of ``NAME-requirements.txt``, made where it is not there or of others."""
    name = requirements.stem.removesuffix("-requirements")
    path = ROOT / ".benchmarks" / name
    installed = path / requirements.name
    if not installed.exists() or installed.read_text() != requirements.read_text():
        print(f"installing {name} into {path}", flush=True)
        venv.create(path, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)]
        subprocess.run([path / "bin" / "python", *install], check=True)
        installed.write_text(requirements.read_text())
    return path / "bin"
