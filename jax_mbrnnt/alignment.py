"""The most probable alignment of labels that are known: which frames each of them is emitted at."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_mbrnnt import _loss, _reference
from jax_mbrnnt._stages import Implementation
from jax_mbrnnt.arcs import Arc
from jax_mbrnnt.lattice import lengths_of, operands_of


class Alignment(NamedTuple):
    """The most probable path through the lattice of each utterance.

    Attributes:
      frames: `[batch_dims..., U]` int32, the frame at which each label is emitted; -1 where there
        is no label.
      durations: `[batch_dims..., U]` int32, the frames that the label's arc takes, 0 but for a TDT;
        -1 as in `frames`.
      label_log_probs: `[batch_dims..., U]`, the log-probability of the arc that emits the label, in
        nats; 0 where there is no label.
      arcs: `[batch_dims..., T + U]` int32, the arcs of the path in their order, by their numbers in
        the arc table; -1 behind its end.
      log_probs: `[batch_dims...]`, the sum of the path's log-probabilities, in nats. -inf for an
        utterance that no path fits, NaN for one whose loss is NaN.

    An utterance without a path, of either kind, has no labels: -1 and 0 stand everywhere.
    """

    frames: jax.Array
    durations: jax.Array
    label_log_probs: jax.Array
    arcs: jax.Array
    log_probs: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_probs(
    arc_log_probs: jax.Array, found: Alignment, arcs: tuple[Arc, ...]
) -> tuple[jax.Array, jax.Array]:
    """What they are, known already; their derivative is that of the path's arcs, given the path."""
    return found.label_log_probs, found.log_probs


@_log_probs.defjvp
def _log_probs_jvp(arcs, primals, tangents):
    arc_log_probs, found = primals
    *batch, num_frames, columns, num_arcs = arc_log_probs.shape
    if num_frames == 0:  # no path has an arc, and nothing can be looked up
        return _log_probs(*primals, arcs), jax.tree.map(jnp.zeros_like, (found[2], found[4]))

    durations = _reference.of_arcs(found.arcs, [arc.duration for arc in arcs])
    emits = _reference.of_arcs(found.arcs, [int(arc.emits) for arc in arcs])
    t, u = (jnp.cumsum(x, axis=-1, dtype=x.dtype) - x for x in (durations, emits))
    on_path = found.arcs >= 0
    place = jnp.where(on_path, (t * columns + u) * num_arcs + found.arcs, 0)
    flat = tangents[0].reshape(*batch, num_frames * columns * num_arcs)
    moved = jnp.where(on_path, jnp.take_along_axis(flat, place, axis=-1), 0)
    label = jnp.expand_dims(jnp.arange(columns - 1, dtype=u.dtype), range(u.ndim))
    is_own = (label == u[..., None]) & (emits == 1)[..., None]
    of_labels = jnp.sum(jnp.where(is_own, moved[..., None], 0), axis=-2)
    return _log_probs(*primals, arcs), (of_labels, jnp.sum(moved, axis=-1))


@functools.partial(jax.jit, static_argnames=("arcs", "implementation"))
def _alignment(arc_log_probs, utterances, *, arcs, implementation):
    lengths = lengths_of(utterances, arc_log_probs)
    constant = jax.lax.stop_gradient(arc_log_probs)
    found = Alignment(
        *_loss.stages_of(implementation).lattice_alignment(constant, *lengths, arcs=arcs)
    )
    label_log_probs, log_probs = _log_probs(arc_log_probs, found, arcs)
    return found._replace(label_log_probs=label_log_probs, log_probs=log_probs)


@functools.partial(jax.jit, static_argnames=("plan",))
def alignment_of_logits(logits, utterances, given, *, plan):
    """As `_loss` has the losses of any transducer."""
    arc_log_probs = _loss.arc_log_probs(logits, utterances, given, plan=plan)
    static = {"arcs": plan.arcs, "implementation": plan.implementation}
    return _alignment(arc_log_probs, utterances, **static)


def viterbi_alignment(
    arc_log_probs: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    arcs: Sequence[Arc],
    implementation: Implementation = None,
) -> Alignment:
    """The most probable path through the lattice, over any arc table.

    The recursion of the losses with the larger of two paths in the place of their sum, and then
    along the best arcs from the first node on; where several are equally good, along the first of
    them in the table. Log-probabilities are added up in double precision, whatever their own.

    `log_probs` and `label_log_probs` have a derivative in `arc_log_probs`, that of the path which
    is the best: 1 for each of its arcs. (`-alignment.log_probs` is the loss of Viterbi training.)
    The path itself has none.

    Args:
      arc_log_probs: `[batch_dims..., T, U+1, A]` float32 or float64, as in `lattice_loss`.
      logit_lengths: `[batch_dims...]`; all T if None.
      label_lengths: `[batch_dims...]`; all U if None.
      arcs: the A arcs.
      implementation: see `Transducer`.

    Returns:
      An `Alignment`, its log-probabilities in the dtype of `arc_log_probs`.

    Raises:
      TypeError, ValueError: as `lattice_loss`.

    Source: Graves, arXiv 1211.3711, section 2.4, with Viterbi's maximum in the place of the sum;
    the betas alone are kept, as the path can be read off them.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import rnnt_arcs, viterbi_alignment
      >>> label = jnp.log(jnp.array([[0.1, 0.1], [0.1, 0.1], [0.8, 0.1]]))  # [T, U+1]
      >>> arc_log_probs = jnp.stack([label, jnp.log1p(-jnp.exp(label))], axis=-1)
      >>> alignment = viterbi_alignment(arc_log_probs, arcs=rnnt_arcs())
      >>> alignment.frames.tolist(), alignment.arcs.tolist()
      ([2], [1, 1, 0, 1])
    """
    operands, static = operands_of(
        arc_log_probs, logit_lengths, label_lengths, arcs, implementation
    )
    return _alignment(*operands, **static)
