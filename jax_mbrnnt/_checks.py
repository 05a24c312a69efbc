"""What a caller may pass: shapes and dtypes while tracing, values where they are known.

Values known only on the device cannot raise there (an error on one shard would hang the
others); the kernels answer them with NaN for that utterance. `check_under_checkify` turns them
into errors where the caller has asked for it.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

from jax_mbrnnt._mesh import zeros_of_batch
from jax_mbrnnt._stages import Implementation
from jax_mbrnnt.arcs import Emission, as_integer

IMPLEMENTATIONS = (None, "ffi", "xla")
IMPLEMENTATION_VARIABLE = "JAX_MBRNNT_IMPLEMENTATION"
_REAL_DTYPES = ("float16", "bfloat16", "float32", "float64")
_INT32_MAX = 2**31 - 1


class Utterances(NamedTuple):
    """The integer operands: shapes settled, dtypes still the caller's, lengths None for all."""

    # Arrays of JAX, traced or not, or of numpy.
    labels: Any  # [batch_dims..., U], None for a lattice without labels
    logit_lengths: Any  # [batch_dims...] or None
    label_lengths: Any  # [batch_dims...] or None

    def settled(
        self,
        like: jax.Array,
        num_batch: int,
        num_frames: int,
        columns: int,
        blanks: Sequence[int] = (),
    ) -> Utterances:
        """As the stages take them: int32, lengths filled in, no class (-1) for a label of `blanks`.

        Called under `jit`. On a mesh in explicit mode the lengths become sharded as the batch dims
        of `like` are, if they are not.
        """
        of_each = zeros_of_batch(like, num_batch, jnp.int32)

        def lengths(given: Any, full: int) -> jax.Array:
            return of_each + (full if given is None else widened(given))

        labels = self.labels
        if labels is not None:
            labels = widened(labels)
            if blanks:
                labels = jnp.where(_is_blank(labels, blanks), -1, labels)
        return Utterances(
            labels,
            lengths(self.logit_lengths, num_frames),
            lengths(self.label_lengths, columns - 1),
        )


def widened(x: Any, xp: Any = jnp) -> Any:
    """As int32: what does not fit stays out of every range that a label or a length may be in.

    In its own dtype a narrow integer would wrap, or the number that it is compared with. `xp` is
    numpy for known arrays, jax.numpy for traced ones.
    """
    info = jnp.iinfo(x.dtype)
    low, high = max(info.min, -1), min(info.max, _INT32_MAX)
    return xp.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(np.int32)


def _is_blank(labels: Any, blanks: Sequence[int]) -> Any:
    """Of `widened` labels."""
    return functools.reduce(operator.or_, (labels == blank for blank in blanks))


def as_array(x: ArrayLike) -> jax.Array:
    """`x`, if it is an array of JAX: a conversion that changes nothing would copy a traced one."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def check_implementation(implementation: str | None, name: str = "implementation") -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{name}: expected one of {IMPLEMENTATIONS}, got {implementation!r}")


def chosen_implementation(implementation: Implementation) -> Implementation:
    """`implementation`; where it is None, what the environment says, in which "" is None."""
    if implementation is not None:
        return implementation
    wanted: Any = os.environ.get(IMPLEMENTATION_VARIABLE) or None
    check_implementation(wanted, IMPLEMENTATION_VARIABLE)
    return wanted


def check_known_sizes(name: str, shape: Sequence[Any], sizes: Sequence[Any]) -> None:
    """`ValueError` for a symbol of jax.export among the sizes of axes that are no batch dims."""
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"{name}: expected numbers for all sizes but those of batch dims, got shape {shape}; "
            "only the latter may be symbols of jax.export: export a program for each padded size"
        )


def check_nodes(name: str, x: ArrayLike, dtypes: tuple[str, ...], last_axis: str) -> jax.Array:
    """The floating-point operand `[batch_dims..., T, U+1, last_axis]`."""
    x = as_array(x)
    if x.dtype.name not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(dtypes)}, got {x.dtype}")
    expected = f"{name}: expected shape [batch_dims..., T, U+1, {last_axis}]"
    if x.ndim < 3:
        raise ValueError(f"{expected}, got {x.shape}")
    check_known_sizes(name, x.shape, x.shape[-3:])
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


def _as_integers(name: str, x: ArrayLike, num_dims: int | None = None) -> Any:
    """An array of JAX as it is, others as numpy's: JAX would cut off what is beyond 32 bits."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
        x = as_array(x)
    elif not hasattr(x, "dtype"):
        x = np.asarray(x)
        x = x.astype(np.int32) if x.size == 0 else x  # an empty list has no integers to show
    if not jnp.issubdtype(x.dtype, np.integer):
        hint = "" if num_dims is None else _paddings(x, num_dims)
        raise TypeError(f"{name}: expected an integer dtype, got {x.dtype}{hint}")
    return x


def _paddings(x: Any, num_dims: int) -> str:
    """What to say of lengths with an axis too many, as `optax.ctc_loss` has in their place."""
    hint = " (lengths, not paddings: (1 - paddings).sum(-1).astype(int))"
    return hint if x.ndim == num_dims + 1 else ""


def check_labels_alone(labels: ArrayLike) -> tuple[int, ...]:
    """The shape `[batch_dims..., U]` of labels that say how many utterances there are."""
    shape = _as_integers("labels", labels).shape
    if len(shape) < 1:
        raise ValueError(f"labels: expected shape [batch_dims..., U], got {shape}")
    return shape


def _without_wrapping(x: Any) -> Any:
    return widened(x, np) if isinstance(x, np.ndarray | np.generic) else x


def check_lengths(
    name: str, x: ArrayLike | None, shape: tuple[Any, ...], full: int, match: str = ""
) -> Any:
    """Lengths `[batch_dims...]` of at most `full`; None for all of it."""
    if x is None:
        return None
    lengths = _as_integers(name, x, len(shape))
    if lengths.shape != shape:
        hint = _paddings(lengths, len(shape))
        raise ValueError(f"{name}: expected shape {shape}{match}, got {lengths.shape}{hint}")
    known = _known(lengths)
    if known:
        _raise_if_bad(_length_rule(name, known[0], full, np))
    return _without_wrapping(lengths)


def check_utterances(
    nodes: jax.Array | jax.ShapeDtypeStruct,
    nodes_name: str,
    labels: ArrayLike | None,
    logit_lengths: ArrayLike | None,
    label_lengths: ArrayLike | None,
    emission: Emission | None = None,
) -> Utterances:
    """Checks the integer operands against `nodes` `[batch_dims..., T, U+1, last]`.

    There are labels if and only if there is an emission, which says what may be one.
    """
    *batch, num_frames, columns, _ = nodes.shape
    batch_dims = tuple(batch)
    match = f" to match {nodes_name} {nodes.shape}"
    integers = None if labels is None else _as_integers("labels", labels)
    expected = (*batch_dims, columns - 1)
    if integers is not None and integers.shape != expected:
        raise ValueError(f"labels: expected shape {expected}{match}, got {integers.shape}")
    utterances = Utterances(
        integers,
        check_lengths("logit_lengths", logit_lengths, batch_dims, num_frames, match),
        check_lengths("label_lengths", label_lengths, batch_dims, columns - 1, match),
    )
    known = _known(integers, utterances.label_lengths)
    if emission is not None and known:
        for rule in _label_rules(known[0], known[1], emission, np):
            _raise_if_bad(rule)
    return utterances._replace(labels=_without_wrapping(integers))


# ---- a joint network and its operands ---------------------------------------------------


def check_joint(joint: Any) -> None:
    if not callable(joint):
        raise TypeError(f"joint: expected a function, got {joint!r}")


def check_joint_operand(
    name: str, tree: Any, batch_dims: tuple[Any, ...], size: int | None, axis_name: str
) -> tuple[Any, int]:
    """A pytree of arrays `[batch_dims..., size, ...]`; its first leaf says the size if None."""
    tree = jax.tree.map(as_array, tree)
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
    chunk_frames = as_integer("chunk_frames", chunk_frames)
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames: expected at least 1, got {chunk_frames}")
    return chunk_frames


# ---- values ----------------------------------------------------------------------------


class _Rule(NamedTuple):
    """Some values, which of them are bad, and what was expected."""

    name: str
    values: Any
    bad: Any
    expected: str


def _length_rule(name: str, lengths: Any, full: int, xp: Any) -> _Rule:
    values = widened(lengths, xp)
    meaning = f"{'T' if name == 'logit_lengths' else 'U'} = {full}"
    expected = f"expected a value in [0, {full + 1}) ({meaning})"
    return _Rule(name, lengths, (values < 0) | (values > full), expected)


def _label_rules(labels: Any, label_lengths: Any, emission: Emission, xp: Any) -> list[_Rule]:
    values = widened(labels, xp)
    counts = np.ones(labels.shape, bool)  # not those behind an utterance's labels
    if label_lengths is not None:
        place = np.arange(labels.shape[-1], dtype=np.int32)
        place = place.reshape(*[1] * (labels.ndim - 1), -1)
        counts = place < widened(label_lengths, xp)[..., None]

    num_classes = emission.num_labels
    outside = counts & ((values < 0) | (values >= num_classes))
    classes = f"expected a value in [0, {num_classes}) (V = {num_classes} classes)"
    rules = [_Rule("labels", labels, outside, classes)]
    if emission.blanks:
        no_blank = f"expected none of the blanks' classes {emission.blanks}"
        is_blank = counts & _is_blank(values, emission.blanks)
        rules.append(_Rule("labels", labels, is_blank, no_blank))
    return rules


def _known(*operands: Any) -> list[Any] | None:
    """The operands on the host, unless one of them is traced or elsewhere."""
    for x in operands:
        if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
            return None
    return [None if x is None else np.asarray(jax.device_get(x)) for x in operands]


def _raise_if_bad(rule: _Rule) -> None:
    """`ValueError` for the first value that is."""
    if rule.bad.any():
        index = tuple(int(i) for i in np.argwhere(rule.bad)[0])
        where = f"{rule.name}{list(index)}" if index else rule.name
        raise ValueError(f"{where}: {rule.expected}, got {rule.values[index]}")


def check_under_checkify(
    utterances: Utterances, num_frames: int, columns: int, emission: Emission
) -> None:
    """The same errors from inside a function that runs under `checkify.checkify`."""
    labels, *lengths = utterances
    rules = [
        _length_rule(name, x, full, jnp)
        for name, x, full in zip(
            Utterances._fields[1:], lengths, (num_frames, columns - 1), strict=True
        )
        if x is not None
    ]
    for rule in [*rules, *_label_rules(labels, lengths[1], emission, jnp)]:
        if rule.bad.size == 0:
            continue
        first = jnp.argmax(rule.bad.ravel())
        index = jnp.unravel_index(first, rule.bad.shape)
        axes = ", ".join(f"{{i{axis}}}" for axis in range(rule.bad.ndim))
        where = f"{rule.name}[{axes}]" if axes else rule.name
        found: dict[str, Any] = {f"i{axis}": i for axis, i in enumerate(index)}
        found["got"] = rule.values.ravel()[first]
        checkify.check(~jnp.any(rule.bad), f"{where}: {rule.expected}, got {{got}}", **found)
