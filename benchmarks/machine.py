"""Where and of what a measurement was made."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import floor


def machine() -> list[str]:
    """What a reader needs to place the numbers."""
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        info = []
    facts = dict(reversed([[x.strip() for x in row.split(":", 1)] for row in info if ":" in row]))
    wanted = ("f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "asimd", "bf16")
    has = set((facts.get("flags") or facts.get("Features") or "").split())
    flags = [flag for flag in wanted if flag in has]

    def version(package: str) -> str:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{package} not here"

    here = pathlib.Path(__file__).parent
    git = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    compiler = subprocess.run(
        [os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True
    ).stdout.splitlines()[0]
    packages = ("jax", "jaxlib", "numpy", "torch", "torchaudio")
    return [
        f"{datetime.date.today()}, commit {commit}",
        f"{facts.get('model name', platform.machine())}, {floor.num_threads()} cores "
        f"({' '.join(flags)}), load {os.getloadavg()[0]:.1f} at the start",
        f"Python {platform.python_version()}, {', '.join(map(version, packages))}, {compiler}",
    ]
