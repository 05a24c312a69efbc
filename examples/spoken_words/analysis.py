"""Where a recogniser errs, when it says a character, and how it comes through an utterance."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jiwer
import numpy as np
from flax import nnx

from jax_mbrnnt import Alignment
from speech.batches import Batch
from spoken_words.features import Bucket
from spoken_words.model import ENCODER_FRAME_SECONDS, Recogniser

Counts = dict[str, dict[int, int]]


class Path(NamedTuple):
    """The most probable way of an utterance's characters through its lattice."""

    frames: np.ndarray  # [U], at which each is said
    arcs: np.ndarray  # [N], those taken

    def between(self, emits: Sequence[bool]) -> list[np.ndarray]:
        """The arcs before each character, its own one not among them, and behind the last."""
        labels = np.flatnonzero(np.asarray(emits)[self.arcs])
        starts, ends = [0, *(labels + 1)], [*labels, len(self.arcs)]
        return [self.arcs[i:j] for i, j in zip(starts, ends, strict=True)]


def paths(recogniser: Recogniser, bucket: Bucket, batch_size: int) -> list[Path]:
    """Of all utterances, for the bucket's labels."""
    return [
        Path(x.frames[:length], x.arcs[x.arcs >= 0])
        for batch in bucket.batches(batch_size)
        for x, length in zip(
            _rows(_alignments(recogniser, batch)), batch.label_lengths, strict=True
        )
    ]


def _rows(alignments: Alignment) -> Iterator[Alignment]:
    whole = jax.device_get(alignments)
    for i in range(len(whole.frames)):
        yield jax.tree.map(lambda x, i=i: x[i], whole)


@nnx.jit
def _alignments(recogniser: Recogniser, batch: Batch) -> Alignment:
    likelihood = dataclasses.replace(recogniser.transducer, sigma=0.0)
    logits, lengths = recogniser(batch)
    return likelihood.alignment(logits, batch.labels, lengths, batch.label_lengths)


def delay(frames: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """By how many seconds characters are said later than by another recogniser, on average."""
    later = [own - other for own, other in zip(frames, others, strict=True)]
    return ENCODER_FRAME_SECONDS * float(np.concatenate(later).mean())


def arcs_taken(recogniser: Recogniser, ways: Sequence[Path]) -> dict[str, float]:
    """How often each arc is taken in an utterance: of labels "label 0", of blanks "blank 2"."""
    counts = np.bincount(
        np.concatenate([way.arcs for way in ways]), minlength=len(recogniser.transducer.arcs)
    )
    return {
        f"{'label' if arc.emits else 'blank'} {arc.duration}": float(count) / len(ways)
        for arc, count in zip(recogniser.transducer.arcs, counts, strict=True)
    }


def longest_before(
    recogniser: Recogniser,
    references: Sequence[str],
    hypotheses: Sequence[str],
    ways: Sequence[Path],
) -> Counts:
    """Which jump stands before an error, and before what is right.

    Of characters: "equal", "delete", "insert" and "substitute" each with the number of times that
    a duration was the longest one since the character before. `ways` are those of the hypotheses.
    """
    arcs = recogniser.transducer.arcs
    emits, durations = [arc.emits for arc in arcs], np.array([arc.duration for arc in arcs])
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for reference, hypothesis, way in zip(references, hypotheses, ways, strict=True):
        before = [int(durations[x].max(initial=0)) for x in way.between(emits)]
        for chunk in itertools.chain(*jiwer.process_characters(reference, hypothesis).alignments):
            # (What was deleted would stand before the next character that is there.)
            of_reference = range(chunk.ref_start_idx, chunk.ref_end_idx)
            places = range(chunk.hyp_start_idx, chunk.hyp_end_idx) or [
                chunk.hyp_start_idx for _ in of_reference
            ]
            counts[chunk.type].update(before[k] for k in places)
    return {kind: dict(sorted(counter.items())) for kind, counter in counts.items()}
