"""How seldom the CUDA sweep leaves its fast path, and that it is right on both.

docs/gpu.md says of which arcs a chunk is done exactly, sixty times as slowly.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from exact_chunks import Lattices, certain, errors, sweep, untrained
from jax_mbrnnt import Arc, multiblank_arcs, rnnt_arcs, tdt_arcs

SHAPE = 150, 70  # T, U+1: three tiles
TRANSDUCERS = {
    "RNN-T": rnnt_arcs(),
    "multi-blank": multiblank_arcs((2, 4, 8)),
    "TDT": tdt_arcs(range(9)),
}


def exact_share(weights: np.ndarray, arcs: Sequence[Arc]) -> float:
    """Of the chunks of both directions; losses and posteriors are those of pure JAX in float64."""
    lattices = Lattices.full(weights, arcs)
    swept = sweep(lattices)
    of_loss, of_posteriors = errors(lattices, swept)
    assert of_loss < 2e-7
    assert of_posteriors < 3e-7
    assert swept.counts.chunks > 10
    return swept.counts.exact / swept.counts.chunks


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_no_chunk_of_a_recogniser_is_exact(name: str) -> None:
    """Neither before training nor when it is sure of its path, all other arcs being e^-16."""
    arcs = TRANSDUCERS[name]
    assert exact_share(untrained(1024, SHAPE, arcs), arcs) == 0
    assert exact_share(certain(16, SHAPE, arcs), arcs) == 0


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_arcs_beyond_the_units_are_swept_exactly(name: str) -> None:
    arcs = TRANSDUCERS[name]
    assert 0.2 < exact_share(certain(60, SHAPE, arcs), arcs) < 1


@pytest.mark.parametrize(("by", "least", "most"), [(-np.inf, 0, 0), (-1e9, 0.9, 1)])
def test_masks_are_to_be_infinite(by: float, least: float, most: float) -> None:
    arcs = TRANSDUCERS["multi-blank"]
    weights = untrained(1024, SHAPE, arcs)
    weights[..., -1] = by  # every blank of 8 frames
    assert least <= exact_share(weights, arcs) <= most
