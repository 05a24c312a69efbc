"""What a caller may pass: shapes and dtypes while tracing, values where they are known.

Values known only on the device cannot raise there (an error on one shard would hang the
others); the kernels answer them with NaN for that utterance. `check_under_checkify` turns them
into errors where the caller has asked for it.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

Implementation = Literal["ffi", "xla"] | None

IMPLEMENTATIONS = (None, "ffi", "xla")
_REAL_DTYPES = ("float16", "bfloat16", "float32", "float64")
_INT32_MAX = 2**31 - 1


class Utterances(NamedTuple):
    """The integer operands: shapes settled, lengths filled in, dtype still the caller's."""

    # Arrays, traced or not, of JAX or of numpy.
    labels: Any  # [batch_dims..., U], None for a lattice without labels
    logit_lengths: Any  # [batch_dims...]
    label_lengths: Any  # [batch_dims...]

    def as_int32(self, nodes: jax.Array) -> Utterances:
        """Casts; what does not fit stays out of every valid range.

        On a mesh in explicit mode the lengths become sharded as `nodes` is, if they are not:
        those that were filled in could not know.
        """
        core = tuple(range(self.logit_lengths.ndim, nodes.ndim))
        of_each = jnp.zeros_like(jnp.sum(nodes, axis=core), dtype=jnp.int32)
        return Utterances(
            None if self.labels is None else _as_int32(self.labels),
            _as_int32(self.logit_lengths) + of_each,
            _as_int32(self.label_lengths) + of_each,
        )


def _as_int32(x: jax.Array) -> jax.Array:
    info = jnp.iinfo(x.dtype)
    return jnp.clip(x, max(info.min, -1), min(info.max, _INT32_MAX)).astype(jnp.int32)


def check_implementation(implementation: str | None) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: expected one of {IMPLEMENTATIONS}, got {implementation!r}"
        )


def check_nodes(name: str, x: ArrayLike, dtypes: tuple[str, ...], last_axis: str) -> jax.Array:
    """The floating-point operand `[batch_dims..., T, U+1, last_axis]`."""
    x = jnp.asarray(x)
    if x.dtype.name not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(dtypes)}, got {x.dtype}")
    expected = f"{name}: expected shape [batch_dims..., T, U+1, {last_axis}]"
    if x.ndim < 3:
        raise ValueError(f"{expected}, got {x.shape}")
    if x.shape[-2] < 1 or x.shape[-1] < 1:
        raise ValueError(f"{expected} with U+1 and {last_axis} at least 1, got {x.shape}")
    return x


def check_logits(logits: ArrayLike) -> jax.Array:
    return check_nodes("logits", logits, _REAL_DTYPES, "V")


def check_arc_log_probs(arc_log_probs: ArrayLike, num_arcs: int) -> jax.Array:
    x = check_nodes("arc_log_probs", arc_log_probs, ("float32", "float64"), "A")
    if x.shape[-1] != num_arcs:
        raise ValueError(
            f"arc_log_probs: expected a last axis of {num_arcs}, one for each arc, got {x.shape}"
        )
    return x


def _check_integers(name: str, x: ArrayLike, shape: tuple[Any, ...], against: str) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} to match {against}, got {x.shape}")
    return x


def check_utterances(
    nodes: jax.Array | jax.ShapeDtypeStruct,
    nodes_name: str,
    labels: ArrayLike | None,
    logit_lengths: ArrayLike | None,
    label_lengths: ArrayLike | None,
) -> Utterances:
    """Checks the integer operands against `nodes` `[batch_dims..., T, U+1, last]`."""
    *batch, num_frames, columns, _ = nodes.shape
    batch_dims = tuple(batch)
    against = f"{nodes_name} {nodes.shape}"

    def lengths(name: str, given: ArrayLike | None, full: int) -> jax.Array:
        if given is None:
            return jnp.full(batch_dims, full, jnp.int32)
        return _check_integers(name, given, batch_dims, against)

    if labels is not None:
        labels = _check_integers("labels", labels, (*batch_dims, columns - 1), against)
    utterances = Utterances(
        labels,
        lengths("logit_lengths", logit_lengths, num_frames),
        lengths("label_lengths", label_lengths, columns - 1),
    )
    _check_known_values(utterances, nodes.shape)
    return utterances


# ---- a joint network and its operands ---------------------------------------------------


def check_joint(joint: Any) -> None:
    if not callable(joint):
        raise TypeError(f"joint: expected a function, got {joint!r}")
    try:
        hash(joint)
    except TypeError:
        raise TypeError(
            f"joint: expected a hashable function, which is compiled once, got {joint!r}; what "
            "cannot be hashed may go into params"
        ) from None


def check_joint_operand(
    name: str, tree: Any, batch_dims: tuple[Any, ...], size: int | None, axis_name: str
) -> tuple[Any, int]:
    """A pytree of arrays `[batch_dims..., size, ...]`; its first leaf says the size if None."""
    tree = jax.tree.map(jnp.asarray, tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: expected an array or a pytree of arrays, got {tree!r}")
    num_batch = len(batch_dims)
    for path, x in leaves:
        expected = (*batch_dims, axis_name if size is None else size)
        if x.ndim <= num_batch or x.shape[:num_batch] != batch_dims:
            fits = False
        else:
            size = x.shape[num_batch] if size is None else size
            fits = x.shape[num_batch] == size
        if not fits:
            shape = ", ".join(map(str, expected))
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: expected shape "
                f"[batch_dims..., {axis_name}, ...] = [{shape}, ...], got {x.shape}"
            )
    assert size is not None
    return tree, size


def check_joint_logits(logits: Any, shape: tuple[Any, ...]) -> int:
    """What a joint returned for a chunk, against `[batch_dims..., C, U+1]`; returns V."""
    if not isinstance(logits, (jax.Array, jax.ShapeDtypeStruct)):
        raise TypeError(f"joint: expected it to return one array of logits, got {logits!r}")
    if logits.dtype.name not in _REAL_DTYPES:
        raise TypeError(
            f"joint: expected logits of dtype {' or '.join(_REAL_DTYPES)}, got {logits.dtype}"
        )
    if logits.ndim != len(shape) + 1 or logits.shape[:-1] != shape or logits.shape[-1] < 1:
        sizes = ", ".join(map(str, shape))
        raise ValueError(
            "joint: expected logits of shape [batch_dims..., C, U+1, V] = "
            f"[{sizes}, V] for C = {shape[-2]} of the frames, got {logits.shape}"
        )
    return logits.shape[-1]


def check_chunk_frames(chunk_frames: int) -> int:
    chunk_frames = operator.index(chunk_frames)
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames: expected at least 1, got {chunk_frames}")
    return chunk_frames


# ---- values ----------------------------------------------------------------------------


class _Range(NamedTuple):
    """Some integers, the half-open range they must lie in, and which of them count."""

    name: str
    values: Any
    stop: int
    meaning: str
    counts: Any

    def is_bad(self) -> Any:
        return self.counts & ((self.values < 0) | (self.values >= self.stop))

    def expected(self) -> str:
        return f"expected a value in [0, {self.stop}) ({self.meaning})"


def _ranges(utterances: Utterances, shape: tuple[Any, ...], xp: Any) -> list[_Range]:
    """The rules on values; `xp` is numpy for known arrays, jax.numpy for traced ones."""
    *_, num_frames, columns, num_classes = shape
    labels, logit_lengths, label_lengths = utterances
    ranges = [
        _Range("logit_lengths", logit_lengths, num_frames + 1, f"T = {num_frames}", True),
        _Range("label_lengths", label_lengths, columns, f"U = {columns - 1}", True),
    ]
    if labels is not None:
        real = xp.arange(columns - 1, dtype=label_lengths.dtype) < label_lengths[..., None]
        ranges.append(_Range("labels", labels, num_classes, f"V = {num_classes} classes", real))
    return ranges


def _is_known(x: Any) -> bool:
    return x is None or (not isinstance(x, jax.core.Tracer) and x.is_fully_addressable)


def _check_known_values(utterances: Utterances, shape: tuple[Any, ...]) -> None:
    """`ValueError` for the first value out of range among operands that are not traced."""
    if not all(map(_is_known, utterances)) or not all(isinstance(n, int) for n in shape):
        return
    known = Utterances(*(None if x is None else np.asarray(jax.device_get(x)) for x in utterances))
    for r in _ranges(known, shape, np):
        bad = np.broadcast_to(r.is_bad(), r.values.shape)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            where = f"{r.name}{list(index)}" if index else r.name
            raise ValueError(f"{where}: {r.expected()}, got {r.values[index]}")


def check_under_checkify(utterances: Utterances, shape: tuple[Any, ...]) -> None:
    """The same errors from inside a function that runs under `checkify.checkify`."""
    for r in _ranges(utterances, shape, jnp):
        bad = jnp.broadcast_to(r.is_bad(), r.values.shape)
        if bad.size == 0:
            continue
        first = jnp.argmax(bad.ravel())
        index = jnp.unravel_index(first, bad.shape)
        axes = ", ".join(f"{{i{axis}}}" for axis in range(bad.ndim))
        where = f"{r.name}[{axes}]" if bad.ndim else r.name
        found: dict[str, Any] = {f"i{axis}": i for axis, i in enumerate(index)}
        found["got"] = r.values.ravel()[first]
        checkify.check(~jnp.any(bad), f"{where}: {r.expected()}, got {{got}}", **found)
