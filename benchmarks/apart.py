"""A function of this package in a fresh process: for what a process keeps for itself.

That is memory that was freed, the C library's settings, the cores that XLA sees, and a crash.
Arguments and result travel as JSON.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def call(
    function: Callable[..., Any],
    *,
    environment: Mapping[str, str] | None = None,
    cores: set[int] | None = None,
    timeout: float | None = None,
    **arguments: Any,
) -> Any:
    """`function(**arguments)` on some of the cores; an error of the process is one here."""
    with tempfile.NamedTemporaryFile("r") as answer:
        asked = [f"{function.__module__}:{function.__name__}", json.dumps(arguments), answer.name]
        # The child inherits what this thread may run on, and so knows of no other core.
        every = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores or every)
        try:
            subprocess.run(
                [sys.executable, "-m", "benchmarks", "--apart", *asked],
                cwd=ROOT,
                env=os.environ | dict(environment or {}),
                timeout=timeout,
                check=True,
            )
        finally:
            os.sched_setaffinity(0, every)
        return json.load(answer)


def answer(function: str, arguments: str, path: str) -> None:
    """The other side of `call`."""
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    pathlib.Path(path).write_text(json.dumps(result))
