"""From labels and the frames at which they are emitted to words with their times, and to CTM lines.

Plain Python over one utterance, for what comes after recognition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jax_mbrnnt.arcs import as_integer

Aggregate = Literal["min", "mean", "product"]
_AGGREGATES: dict[str, Callable[..., Any]] = {"min": np.min, "mean": np.mean, "product": np.prod}
# Does the piece begin a word, and what it adds to the word's text.
Boundary = Callable[[str], tuple[bool, str]]


class Word(NamedTuple):
    """A word and its times.

    Attributes:
      text: the word.
      start: when it begins, in seconds.
      end: when it ends, in seconds.
      confidence: that of its labels, taken together; None if theirs are not known.
    """

    text: str
    start: float
    end: float
    confidence: float | None


def word_times(
    pieces: Sequence[str],
    frames: ArrayLike,
    durations: ArrayLike | None = None,
    *,
    num_frames: int,
    frame_shift: float,
    boundary: str | Boundary = "▁",
    max_label_frames: int | None = None,
    confidences: ArrayLike | None = None,
    aggregate: Aggregate = "mean",
) -> list[Word]:
    """The words of an utterance and when they were spoken.

    A word begins at the frame of its first label and ends with its last one, a frame later at the
    earliest. A label ends as many frames behind its own as `durations` says, above 0, which a TDT
    does; otherwise at the frame of the next label, and the last one at `num_frames`. So a pause
    belongs to the label before it, unless `max_label_frames` ends that sooner.

    Args:
      pieces: of each label what it stands for in writing, U strings.
      frames: the frame of each label: at least U integers, of which the first U count, as in
        `Alignment`, `GreedyDecoding` or a beam's.
      durations: of each label, likewise; None if the model predicts none.
      num_frames: the utterance's frames.
      frame_shift: seconds between two frames of the encoder's output.
      boundary: what a piece begins with that begins a word, SentencePiece's mark or a space; it is
        no part of the word, and a piece that is nothing else belongs to none. Or a function that
        says of a piece whether it begins a word, and its text; an empty text belongs to no word.
      max_label_frames: a label whose duration is not known takes no more than that.
      confidences: of each label, likewise; None if they are not known.
      aggregate: what of its labels' confidences is the word's: the least, the mean or the product.

    Returns:
      The words, in their order.

    Raises:
      ValueError: fewer numbers than labels, a frame that is none, or an option that is none.

    Example:
      >>> from jax_mbrnnt import word_times
      >>> pieces = ["▁mul", "ti", "▁blank"]
      >>> words = word_times(pieces, [2, 4, 9], num_frames=12, frame_shift=0.04)
      >>> [(word.text, round(word.start, 2), round(word.end, 2)) for word in words]
      [('multi', 0.08, 0.36), ('blank', 0.36, 0.48)]

      Letters with a space between the words:

      >>> [word.text for word in word_times("so it is", range(8), num_frames=8, frame_shift=0.04,
      ...                                   boundary=" ")]
      ['so', 'it', 'is']

      WordPiece, which marks the pieces that continue a word:

      >>> def boundary(piece):
      ...     return not piece.startswith("##"), piece.removeprefix("##")
      >>> [word.text for word in word_times(["blank", "##s", "too"], [0, 1, 2], num_frames=3,
      ...                                   frame_shift=0.04, boundary=boundary)]
      ['blanks', 'too']
    """
    count = len(pieces)
    num_frames = as_integer("num_frames", num_frames)
    if not 0 < frame_shift < float("inf"):
        raise ValueError(f"frame_shift: expected seconds above 0, got {frame_shift}")
    if aggregate not in _AGGREGATES:
        raise ValueError(f"aggregate: expected one of {tuple(_AGGREGATES)}, got {aggregate!r}")
    if max_label_frames is not None and max_label_frames < 1:
        raise ValueError(f"max_label_frames: expected at least 1, got {max_label_frames}")
    begins = _of_labels("frames", frames, count)
    for i, frame in enumerate(begins):
        earliest = begins[i - 1] if i else 0
        if not earliest <= frame < num_frames:
            raise ValueError(
                f"frames[{i}]: expected one from {earliest} to {num_frames - 1} (num_frames - 1), "
                f"got {frame}"
            )
    known = [0] * count if durations is None else _of_labels("durations", durations, count)
    sure = None if confidences is None else _of_labels("confidences", confidences, count)

    ends = []
    for i, frame in enumerate(begins):
        end = begins[i + 1] if i + 1 < count else num_frames
        if known[i] > 0:
            end = min(frame + known[i], num_frames)
        elif max_label_frames is not None:
            end = min(end, frame + max_label_frames)
        ends.append(end)

    split = _as_function(boundary)
    words: list[tuple[str, list[int]]] = []
    between = True
    for i, piece in enumerate(pieces):
        begins_word, text = split(piece)
        between |= begins_word
        if not text:
            continue
        if between:
            words.append(("", []))
        written, labels = words[-1]
        words[-1] = written + text, [*labels, i]
        between = False
    return [
        Word(
            text,
            begins[labels[0]] * frame_shift,
            max(ends[labels[-1]], begins[labels[0]] + 1) * frame_shift,
            None if sure is None else float(_AGGREGATES[aggregate]([sure[i] for i in labels])),
        )
        for text, labels in words
    ]


def _of_labels(name: str, values: ArrayLike, count: int) -> list[Any]:
    """The first `count` of them, as Python's numbers."""
    array = np.asarray(values)
    if array.ndim != 1 or len(array) < count:
        raise ValueError(
            f"{name}: expected at least {count} numbers, one for each label of one utterance, got "
            f"shape {array.shape}"
        )
    return array[:count].tolist()


def _as_function(boundary: str | Boundary) -> Boundary:
    if not isinstance(boundary, str):
        return boundary
    if not boundary:
        raise ValueError("boundary: expected a mark that begins a word, got an empty string")
    return lambda piece: (piece.startswith(boundary), piece.removeprefix(boundary))


def ctm_lines(words: Sequence[Word], utterance: str, channel: str = "1") -> list[str]:
    """The words of an utterance as lines of a CTM file, as NIST's scoring tools read it.

    Args:
      words: as `word_times` gives them.
      utterance: the name of the recording.
      channel: of the recording.

    Returns:
      A line for each word, without a line break. In it stand the utterance, the channel, start and
      duration in seconds, the word and, if it is known, its confidence.

    Raises:
      ValueError: a name or a word is empty or has white space in it, which separates the fields.

    Source: the CTM format of NIST's SCTK.

    Example:
      >>> from jax_mbrnnt import Word, ctm_lines
      >>> ctm_lines([Word("multi", 0.08, 0.36, 0.97), Word("blank", 0.36, 0.48, None)], "talk")
      ['talk 1 0.080 0.280 multi 0.9700', 'talk 1 0.360 0.120 blank']
    """
    lines = []
    for word in words:
        for name, field in (("utterance", utterance), ("channel", channel), ("word", word.text)):
            if field.split() != [field]:
                raise ValueError(f"{name}: expected text without white space, got {field!r}")
        seconds = word.start, word.end - word.start
        fields = [utterance, channel, *(f"{x:.3f}" for x in seconds), word.text]
        if word.confidence is not None:
            fields.append(f"{word.confidence:.4f}")
        lines.append(" ".join(fields))
    return lines
