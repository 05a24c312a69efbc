"""Whether a prediction network has a row for the label that starts an utterance.

JAX reads the last row of a table, or nothing at all, where one is asked for that is not there: an
embedding of the labels alone, asked for a blank, gives a prediction that means nothing. The start
label is known before tracing, so what is read for it is known, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jax_mbrnnt.decoding.search import Predict, PyTree

_MOST = 1 << 16  # numbers of an array; more are no labels


def check_start_row(predict: Predict, batch: Any, state: PyTree, start: Any) -> None:
    """`ValueError` if `predict` indexes an array out of its bounds by the start label."""
    if not (isinstance(batch, int) and isinstance(start, int) and batch > 0):
        return  # not known
    labels = jax.ShapeDtypeStruct((batch,), np.int32)
    closed = jax.make_jaxpr(lambda *operands: predict(*operands))(labels, state)
    known = [np.full(batch, float(start)), *[None] * (len(closed.jaxpr.invars) - 1)]
    outside = _reads_outside(closed.jaxpr, closed.consts, known, [])
    if outside is not None:
        raise ValueError(
            f"predict: expected a row for the start label, class {start}, in what it indexes by "
            f"labels, got an array of shape {outside}; name another start_label, or map it to a "
            "row that there is"
        )


def _reads_outside(
    jaxpr: Any, consts: Sequence[Any], known: Sequence[Any], results: list[Any]
) -> tuple[int, ...] | None:
    """The shape of the first array that is indexed out of bounds by what is known.

    `known` are the arguments, in float64 with NaN where they are not, or None for all unknown;
    `results` becomes the same of what is returned. All by numpy: nothing here touches a device.
    """
    values = dict(zip(jaxpr.invars, known, strict=True))
    values |= {
        var: x.astype(float) if isinstance(x, np.ndarray) and x.dtype.kind in "iub" else None
        for var, x in zip(jaxpr.constvars, consts, strict=True)
    }

    def read(var: Any) -> Any:
        return np.asarray(var.val, float) if hasattr(var, "val") else values.get(var)

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        found: Any = [None] * len(eqn.outvars)
        if inner is not None:
            inner, its_consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            if (len(inner.invars), len(inner.outvars)) == (len(operands), len(found)):
                outside = _reads_outside(inner, its_consts, operands, found)
                if outside is not None:
                    return outside
        elif eqn.primitive.name == "gather":
            shape = eqn.invars[0].aval.shape
            if _is_outside(operands[1], shape, eqn.params):
                return shape
        elif (
            eqn.primitive.name in _BY_NUMPY
            and any(x is not None for x in operands)
            and eqn.outvars[0].aval.size <= _MOST
        ):
            operands = [
                np.full(var.aval.shape, np.nan) if x is None else x
                for var, x in zip(eqn.invars, operands, strict=True)
            ]
            found = [_BY_NUMPY[eqn.primitive.name](*operands, **eqn.params)]
        values.update(zip(eqn.outvars, found, strict=True))
    results[:] = map(read, jaxpr.outvars)
    return None


def _is_outside(index: np.ndarray | None, shape: tuple[int, ...], params: dict[str, Any]) -> bool:
    if index is None or params.get("fill_value") == 0:  # a row of zeros has been asked for
        return False
    axes = params["dimension_numbers"].start_index_map
    room = [shape[axis] - params["slice_sizes"][axis] for axis in axes]
    return bool(np.any((index < 0) | (index > np.array(room))))


def _broadcast(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    sizes = np.ones(len(shape), int)
    sizes[list(broadcast_dimensions)] = x.shape
    return np.broadcast_to(x.reshape(sizes), shape)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands, **_: function(*operands)


def _compare(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of what is not known, the answer is not known."""
    return lambda x, y, **_: np.where(np.isnan(x) | np.isnan(y), np.nan, function(x, y))


def _select(which: Any, *cases: Any, **_: Any) -> np.ndarray:
    chosen = np.choose(np.nan_to_num(which).astype(int), cases)
    return np.where(np.isnan(which), np.nan, chosen)


# What JAX makes of `table[labels]`, and what a caller may do to labels before.
_BY_NUMPY: dict[str, Callable[..., Any]] = {
    "add": _plain(np.add),
    "sub": _plain(np.subtract),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "clamp": _plain(lambda low, x, high: np.clip(x, low, high)),
    "lt": _compare(np.less),
    "le": _compare(np.less_equal),
    "eq": _compare(np.equal),
    "ne": _compare(np.not_equal),
    "gt": _compare(np.greater),
    "ge": _compare(np.greater_equal),
    "select_n": _select,
    "convert_element_type": _plain(lambda x: x),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
}
