"""A beam search of one utterance in plain Python, by the rules of docs/beam.md, in float64.

Its hypotheses are dictionaries from labels to nodes, it merges by looking labels up, and it carries
whole alignments along: nothing here is hashed, shifted or written into tables.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jax_mbrnnt import MultiblankRNNT
from plain_search import CONTEXTS, HAT, LABELS, Model, blanks_of

Labels = tuple[int, ...]
Step = tuple[int, int, int, float]  # label, frame, duration, log-probability


class Piece(NamedTuple):
    """All alignments of some labels at one node."""

    total: float
    best: float
    steps: tuple[Step, ...]  # the labels of the best


class Hypothesis(NamedTuple):
    labels: Labels
    score: float
    piece: Piece


def log_softmax(scores: np.ndarray) -> np.ndarray:
    peak = scores.max()
    return scores - peak - np.log(np.sum(np.exp(scores - peak)))


def log_add(*log_probs: float) -> float:
    return float(np.logaddexp.reduce(log_probs)) if log_probs else -math.inf


def arcs_of(transducer: Any, scores: np.ndarray) -> Iterator[tuple[int | None, int, float]]:
    """The label (None: a blank), duration and log-probability of every arc out of a node."""
    if isinstance(transducer, HAT):
        labels, (blank, label) = log_softmax(scores[:-2]), log_softmax(scores[-2:])
        yield None, 1, blank
        for v, log_prob in enumerate(labels):
            yield v, 0, label + log_prob
        return
    if isinstance(transducer, MultiblankRNNT):
        blanks = blanks_of(transducer, len(scores))
        for v, log_prob in enumerate(log_softmax(scores)):
            yield (None, blanks[v], log_prob) if v in blanks else (v, 0, log_prob)
        return
    tokens = len(scores) - len(transducer.durations)
    of_durations = log_softmax(scores[tokens:])
    for v, of_token in enumerate(log_softmax(scores[:tokens])):
        for duration, of_duration in zip(transducer.durations, of_durations, strict=True):
            is_blank = v == transducer.blank_id % tokens
            if duration > 0 or not is_blank:
                yield None if is_blank else v, duration, of_token + of_duration


def context_of(model: Model, labels: Labels) -> int:
    """The row of `model.predictions`: what `plain_search.predict` makes of the labels."""
    hidden, cell = 0, [1, 1]
    for v in (model.blank, *labels):
        hidden = (3 * hidden + cell[0] + v + 1) % CONTEXTS
        cell = [(hidden + v) % CONTEXTS, cell[0]]
    return hidden


def merge(pieces: list[Piece]) -> Piece:
    best = max(pieces, key=lambda piece: piece.best)
    return Piece(log_add(*(piece.total for piece in pieces)), best.best, best.steps)


def search(
    model: Model,
    utterance: int,
    length: int,
    *,
    beam: int,
    threshold: float = math.inf,
    max_labels: int | None = None,
    max_duration: float = math.inf,
    bonus: Callable[[Labels], float] = lambda labels: 0.0,
    end: Callable[[Labels], float] = lambda labels: 0.0,
) -> list[Hypothesis]:
    """The hypotheses, the best one first. `bonus` is what all of its labels add to a score."""
    max_labels = len(model.encoded[utterance]) if max_labels is None else max_labels
    pieces: dict[Labels, dict[int, Piece]] = {(): {0: Piece(0.0, 0.0, ())}}  # by frame

    def score(labels: Labels) -> float:
        return log_add(*(piece.total for piece in pieces[labels].values())) + bonus(labels)

    while alive := [(t + len(y), y, t) for y in pieces for t in pieces[y] if t < length]:
        n = min(alive)[0]
        come: dict[Labels, dict[int, list[Piece]]] = defaultdict(lambda: defaultdict(list))
        for _, labels, t in (node for node in alive if node[0] == n):
            here = pieces[labels].pop(t)
            row = model.encoded[utterance, t] + model.predictions[context_of(model, labels)]
            for v, duration, log_prob in arcs_of(model.transducer, row.astype(np.float64)):
                new, steps = labels, here.steps
                if v is not None:
                    new, steps = (*labels, v), (*here.steps, (v, t, duration, log_prob))
                inside = t + duration < length or (v is None and t + duration == length)
                if inside and len(new) <= max_labels and duration <= max_duration:
                    piece = Piece(here.total + log_prob, here.best + log_prob, steps)
                    come[new][t + duration].append(piece)
        for labels, by_frame in come.items():
            kept = pieces.setdefault(labels, {})
            for t, new_pieces in by_frame.items():
                kept[t] = merge([*([kept[t]] if t in kept else []), *new_pieces])

        scores = {labels: score(labels) for labels in pieces}
        floor = max(scores.values()) - threshold
        best = sorted(scores, key=lambda labels: -scores[labels])[:beam]
        best = [y for y in best if scores[y] >= floor and scores[y] > -math.inf]
        # Many alignments may share a hypothesis: the best one stays.
        most = max((p.total + bonus(y) for y in best for p in pieces[y].values()), default=floor)
        pieces = {
            labels: {
                t: piece
                for t, piece in pieces[labels].items()
                if t == length or piece.total + bonus(labels) >= min(floor, most)
            }
            for labels in best
        }

    ended = [
        Hypothesis(labels, piece.total + bonus(labels) + end(labels), piece)
        for labels, by_frame in pieces.items()
        for piece in by_frame.values()
    ]
    return sorted(ended, key=lambda hypothesis: -hypothesis.score)


def every_sequence(most: int) -> list[Labels]:
    """Of at most so many labels."""
    return [y for u in range(most + 1) for y in itertools.product(range(LABELS), repeat=u)]
