"""Random utterances, compiled losses and gradients, and how they are compared."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from jax_mbrnnt import TDT, Arc, MultiblankRNNT, Transducer, arc_posteriors, lattice_loss

Array = NDArray[Any]
Implementation = Literal["ffi", "xla"]


class Case(NamedTuple):
    """The operands of the loss, in its order."""

    logits: Any
    labels: Any
    logit_lengths: Any
    label_lengths: Any


def random_case(
    seed: int,
    batch: tuple[int, ...] = (3,),
    T: int = 5,
    U: int = 3,
    V: int = 8,
    *,
    dtype: DTypeLike = np.float64,
    ragged: bool = True,
    scale: float = 2.0,
    blanks: Sequence[int] | None = None,
) -> Case:
    """Normal logits and labels of any class but the blanks; full lengths unless `ragged`.

    Blanks are by default the last four classes, so far as that leaves a label.
    """
    classes = sorted(set(range(V)) - set(range(max(1, V - 4), V) if blanks is None else blanks))
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(*batch, T, U + 1, V)).astype(dtype)
    labels = rng.choice(classes, (*batch, U)).astype(np.int32)
    logit_lengths = rng.integers(min(T, 1) if ragged else T, T + 1, batch)
    label_lengths = rng.integers(0 if ragged else U, U + 1, batch)
    return Case(
        logits, labels, np.asarray(logit_lengths, np.int32), np.asarray(label_lengths, np.int32)
    )


def valid_cells(case: Case) -> NDArray[np.bool_]:
    """Which nodes `[batch..., T, U+1]` lie within the lengths."""
    t, u = np.indices(case.logits.shape[-3:-1])
    logit_lengths, label_lengths = map(np.asarray, case[2:])
    return (t < logit_lengths[..., None, None]) & (u <= label_lengths[..., None, None])


def criterion(**options: Any) -> Transducer:
    """The transducer that has these options: those with durations are TDT's."""
    return TDT(**options) if "durations" in options else MultiblankRNNT(**options)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Any:
    def run(case: Case, cotangents: Any) -> Any:
        losses, pullback = jax.vjp(lambda logits: function(logits, *case[1:]), case.logits)
        return losses, pullback(cotangents.astype(losses.dtype))[0]

    return jax.jit(run)


def losses_and_gradients(
    case: Case,
    cotangents: ArrayLike | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """Of `criterion(**options)`."""
    return losses_and_gradients_of(criterion(**options), case, cotangents)


def losses_and_gradients_of(
    function: Callable[..., Any],
    case: Case,
    cotangents: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Losses and their pullback (of ones) to the logits, in one jitted call.

    Labels and lengths are traced, so that Python cannot check their values.
    """
    if cotangents is None:
        cotangents = np.ones(case.logits.shape[:-3])
    run = _compiled(function)
    losses, gradients = run(case, np.asarray(cotangents, np.float64))
    return np.asarray(losses), np.asarray(gradients)


@functools.cache
def compiled(method: str, **options: Any) -> Any:
    """A jitted method of `criterion(**options)`."""
    return jax.jit(getattr(criterion(**options), method))


@functools.cache
def compiled_lattice(arcs: tuple[Arc, ...], implementation: Implementation) -> Any:
    """Of `(arc_log_probs, logit_lengths, label_lengths)`: losses, their gradients, posteriors."""

    def run(arc_log_probs: jax.Array, *lengths: jax.Array) -> tuple[jax.Array, ...]:
        options: dict[str, Any] = {"arcs": arcs, "implementation": implementation}
        losses, pullback = jax.vjp(lambda x: lattice_loss(x, *lengths, **options), arc_log_probs)
        posteriors = arc_posteriors(arc_log_probs, *lengths, **options)
        return losses, pullback(jnp.ones_like(losses))[0], posteriors

    return jax.jit(run)


def row(x: Any, like: Any) -> Any:
    """`x` `[N]` for what has `like`'s rank: the tests run without rank promotion."""
    return x.reshape(*[1] * (like.ndim - 1), -1)


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float) -> None:
    """Errors of at most `tolerance * max(1, |expected|)`, infinities and NaN in the same places."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    errors = np.abs(actual[finite] - expected[finite]) / np.maximum(1, np.abs(expected[finite]))
    assert np.max(errors, initial=0.0) <= tolerance  # NaN fails, too
