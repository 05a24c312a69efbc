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


LABEL = -1  # in the place of a class: the next label


def table(
    num_scores: int,
    *,
    blank_id: int = -1,
    big_blank_durations: Sequence[int] = (),
    big_blank_ids: Sequence[int] | None = None,
    durations: Sequence[int] = (),
) -> tuple[list[Arc], list[slice], list[list[int]]]:
    """The arcs, where in a row each head stands, and the classes that each arc reads of them.

    TDT if there are durations, otherwise multi-blank.
    """
    num_tokens = num_scores - len(durations)
    blank = blank_id % num_tokens
    if not durations:
        arcs = [(0, True), (1, False), *((duration, False) for duration in big_blank_durations)]
        big = [blank - 1 - i for i in range(len(big_blank_durations))]
        if big_blank_ids is not None:
            big = [v % num_tokens for v in big_blank_ids]
        reads = [[LABEL], [blank], *([v] for v in big)]
        return arcs, [slice(0, num_tokens)], reads
    arcs = [(duration, emits) for emits in (True, False) for duration in durations]
    arcs = [(duration, emits) for duration, emits in arcs if emits or duration > 0]
    reads = [[LABEL if emits else blank, list(durations).index(d)] for d, emits in arcs]
    return arcs, [slice(0, num_tokens), slice(num_tokens, num_scores)], reads


def transducer(
    logits: Floats,
    labels: Sequence[int],
    T: int,
    U: int,
    *,
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
    **options: Any,
) -> tuple[float, Floats]:
    """Loss of one utterance and its gradient, `[T_padded, U_padded+1, V]`.

    NaN, both of them, for a label that is a blank or no class of the first head.
    """
    arcs, heads, reads = table(logits.shape[-1], **options)
    allowed = set(range(heads[0].stop)) - {of_arc[0] for of_arc in reads}
    if T > 0 and not set(labels[:U]) <= allowed:
        gradient = np.zeros(logits.shape)
        gradient[:T, : U + 1] = np.nan
        return np.nan, gradient

    log_probs = np.full(logits.shape, -np.inf)
    for head in heads:
        log_probs[:T, : U + 1, head] = log_softmax(logits[:T, : U + 1, head])
    # Where in its row each arc that leaves a node on row u reads.
    places = [
        [
            [
                head.start + (labels[u] if v == LABEL else v)
                for head, v in zip(heads, of_arc, strict=True)
            ]
            if u < U or of_arc[0] != LABEL
            else None
            for of_arc in reads
        ]
        for u in range(U + 1)
    ]
    arc_log_probs = np.full((*logits.shape[:2], len(arcs)), -np.inf)
    for u, of_arcs in enumerate(places):
        for arc, read in enumerate(of_arcs):
            if read is not None:
                arc_log_probs[:, u, arc] = log_probs[:, u, read].sum(-1) - sigma

    log_likelihood, posteriors = lattice(arc_log_probs, T, U, arcs)
    gradient = np.zeros(logits.shape)
    for h, head in enumerate(heads):
        # FastEmit and the clamp are of the first head.
        weight, bound = (1 + fastemit_lambda, clamp or np.inf) if h == 0 else (1.0, np.inf)
        weighted = posteriors * np.where([emits for _, emits in arcs], weight, 1.0)
        gradient[..., head] = np.exp(log_probs[..., head]) * weighted.sum(-1, keepdims=True)
        for u, of_arcs in enumerate(places):
            for arc, read in enumerate(of_arcs):
                if read is not None:
                    gradient[:, u, read[h]] -= weighted[:, u, arc]
        gradient[..., head] = np.clip(gradient[..., head], -bound, bound)
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
