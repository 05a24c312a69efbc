"""A program of this folder in a fresh process, which prints JSON."""

import json
import os
import subprocess
import sys
from typing import Any

from programs import Shape


def run(file: str, shape: Shape, *arguments: str, **environment: str) -> Any:
    command = [sys.executable, file, "--shape", ",".join(map(str, shape)), *arguments]
    settings = {**os.environ, **environment}
    result = subprocess.run(command, env=settings, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(result.stdout)


def parse_shape(text: str) -> Shape:
    """What `run` wrote."""
    batch, frames, columns, classes = map(int, text.split(","))
    return batch, frames, columns, classes
