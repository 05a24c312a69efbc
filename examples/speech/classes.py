"""What a transducer's classes are, and how their biases begin."""

import numpy as np

from jax_mbrnnt import Transducer


def scores_for(transducer: Transducer, labels: int) -> int:
    """Returns how many scores a node has for so many labels: blanks and other heads add theirs."""
    scores = labels + 100  # enough for any
    emission = transducer.emission(scores)
    return scores - (emission.num_labels - len(emission.blanks) - labels)


def durations_of_classes(transducer: Transducer, scores: int) -> list[set[int]]:
    """Returns of each class `[V]` the durations of the arcs that read it by its number."""
    emission = transducer.emission(scores)
    arcs = list(zip(transducer.arcs, emission.reads, strict=True))
    return [
        {arc.duration for arc, reads in arcs if reads[h] == v}
        for h, size in enumerate(emission.heads)
        for v in range(size)
    ]


def durations_in_nats(transducer: Transducer, scores: int) -> np.ndarray:
    """Returns a bias `[V]` by which a class is the more probable the longer it takes.

    Training from there is faster than from equal classes.
    """
    # A class of several durations leaves open how long it takes.
    of_classes = durations_of_classes(transducer, scores)
    return np.array([np.log(max(1, *d)) if len(d) == 1 else 0.0 for d in of_classes])


def jump_classes(transducer: Transducer, scores: int) -> np.ndarray:
    """Returns which classes `[V]` are read by arcs of several frames alone: none of an RNN-T's."""
    return np.array([min(d, default=1) > 1 for d in durations_of_classes(transducer, scores)])


def inputs_of_prediction(transducer: Transducer, scores: int) -> tuple[int, int]:
    """Returns how many classes a prediction network embeds, and which is said before the start.

    That is the blank, which is no label.
    """
    emission = transducer.emission(scores)
    return emission.num_labels, emission.blanks[0]
