"""Losses, posteriors and logit gradients by walking every path of the lattice, in float64.

The bottom rung of the ladder: nothing is shared between paths, so there is no recursion over nodes
to get wrong. The cost is exponential in the size of the lattice, which has to be tiny.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Arc = tuple[int, bool]  # (duration, emits), as in `jax_mbrnnt.Arc`
Step = tuple[int, int, int]  # (t, u, arc): one arc of a path and the node that it leaves
Floats = NDArray[np.float64]


def paths(T: int, U: int, arcs: Sequence[Arc], t: int = 0, u: int = 0) -> Iterator[list[Step]]:
    """Every path from node (t, u) to the final node (T, U)."""
    if (t, u) == (T, U):
        yield []
        return
    for arc, (duration, emits) in enumerate(arcs):
        head = t + duration, u + emits
        inside = head[0] < T and head[1] <= U
        final = head == (T, U) and not emits
        if inside or final:
            for rest in paths(T, U, arcs, *head):
                yield [(t, u, arc), *rest]


def lattice(arc_log_probs: Floats, T: int, U: int, arcs: Sequence[Arc]) -> tuple[float, Floats]:
    """Log-likelihood of one utterance and its arc posteriors, `[T_padded, U_padded+1, A]`."""
    every = list(paths(T, U, arcs))
    scores = np.array([sum(arc_log_probs[step] for step in path) for path in every], np.float64)
    posteriors = np.zeros(arc_log_probs.shape)
    if not np.any(scores > -np.inf):
        return -np.inf, posteriors
    best = scores.max()
    log_likelihood = best + np.log(np.sum(np.exp(scores - best)))
    for path, score in zip(every, scores, strict=True):
        for step in path:
            posteriors[step] += np.exp(score - log_likelihood)
    return float(log_likelihood), posteriors


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities over the last axis; a row that is all -inf stays so."""
    peak = logits.max(-1, keepdims=True)
    peak = np.where(np.isinf(peak), 0.0, peak)
    with np.errstate(divide="ignore"):
        normalizer = peak + np.log(np.sum(np.exp(logits - peak), -1, keepdims=True))
    return logits - np.where(np.isinf(normalizer), 0.0, normalizer)


def transducer(
    logits: Floats,
    labels: Sequence[int],
    T: int,
    U: int,
    *,
    blank_id: int = -1,
    big_blank_durations: Sequence[int] = (),
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
) -> tuple[float, Floats]:
    """Multi-blank loss of one utterance and its gradient, `[T_padded, U_padded+1, V]`.

    NaN, both of them, for a label that is a blank.
    """
    blank = blank_id % logits.shape[-1]
    arcs = [(0, True), (1, False), *((duration, False) for duration in big_blank_durations)]
    blanks = [blank - i for i in range(len(arcs) - 1)]
    if T > 0 and set(labels[:U]) & set(blanks):
        gradient = np.zeros(logits.shape)
        gradient[:T, : U + 1] = np.nan
        return np.nan, gradient
    # The class of every arc that leaves a node on row u.
    classes = [{0: labels[u]} if u < U else {} for u in range(U + 1)]
    for row in classes:
        row.update(enumerate(blanks, start=1))

    log_probs = np.full(logits.shape, -np.inf)
    log_probs[:T, : U + 1] = log_softmax(logits[:T, : U + 1])
    arc_log_probs = np.full((*logits.shape[:2], len(arcs)), -np.inf)
    for u, row in enumerate(classes):
        for arc, v in row.items():
            arc_log_probs[:, u, arc] = log_probs[:, u, v] - sigma

    log_likelihood, posteriors = lattice(arc_log_probs, T, U, arcs)
    weighted = posteriors * np.where([emits for _, emits in arcs], 1 + fastemit_lambda, 1.0)
    gradient = np.exp(log_probs) * weighted.sum(-1, keepdims=True)
    for u, row in enumerate(classes):
        for arc, v in row.items():
            gradient[:, u, v] -= weighted[:, u, arc]
    if clamp > 0:
        gradient = np.clip(gradient, -clamp, clamp)
    return -(1 + fastemit_lambda) * log_likelihood, gradient


def transducers(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike,
    label_lengths: ArrayLike,
    **options: Any,
) -> tuple[Floats, Floats]:
    """`transducer` over any batch dimensions: losses `[...]`, gradients `[..., T, U+1, V]`."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    logit_lengths, label_lengths = np.asarray(logit_lengths), np.asarray(label_lengths)
    losses, gradients = np.zeros(logit_lengths.shape), np.zeros(logits.shape)
    for i in np.ndindex(losses.shape):
        T, U = int(logit_lengths[i]), int(label_lengths[i])
        losses[i], gradients[i] = transducer(logits[i], labels[i].tolist(), T, U, **options)
    return losses, gradients
