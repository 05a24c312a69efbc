"""Numbers that change while a training goes on."""

from collections.abc import Sequence

import numpy as np


def share_at(shares: Sequence[tuple[float, float]], progress: float) -> float:
    """Returns what counts at `progress`, of 1: given at some places, linear in between."""
    return float(np.interp(progress, *zip(*shares, strict=True)))
