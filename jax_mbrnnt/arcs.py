"""What a transducer is: its arcs, the heads of its scores, and what each arc reads of each head.

Knows no JAX: everything here is static and is settled before tracing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# The C++ side's kMaxArcs, kMaxHeads, kNextLabel and kNothing (lattice/).
MAX_ARCS, MAX_HEADS = 32, 2
NEXT_LABEL, NOTHING = -1, -2


def as_integer(name: str, value: Any) -> int:
    """`value` as an `int`; `TypeError` naming the argument for what is none, 2.5 included."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None


class Arc(NamedTuple):
    """One kind of step through the lattice.

    Attributes:
      duration: frames that the step takes, at least 0.
      emits: True if it takes the next label, False for a blank (whose duration is at
        least 1).
    """

    duration: int
    emits: bool


class Emission(NamedTuple):
    """How a row of scores becomes arc log-probabilities.

    The row is split into heads, one behind the other and each with its own log-softmax, of which
    an arc reads at most one class each. The log-probability of an arc is the sum of what it reads.

    Attributes:
      heads: how many classes each head has, 1 or 2 heads.
      reads: of each arc, what it reads of each head: a class by its number within the head,
        `NEXT_LABEL` (of the first head), or `NOTHING`.
    """

    heads: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]

    @property
    def num_labels(self) -> int:
        """V, the size of the first head, whose classes labels are."""
        return self.heads[0]

    @property
    def blanks(self) -> tuple[int, ...]:
        """Classes of the first head that arcs read by their number; no label may be one."""
        tokens = (of_arc[0] for of_arc in self.reads)
        return tuple(dict.fromkeys(v for v in tokens if v >= 0))


def rnnt_arcs() -> tuple[Arc, ...]:
    """The arcs of an RNN-T (Graves 2012): a label, and a blank of one frame."""
    return multiblank_arcs(())


def multiblank_arcs(big_blank_durations: Sequence[int]) -> tuple[Arc, ...]:
    """The arcs of a multi-blank transducer (arXiv 2211.03541).

    Args:
      big_blank_durations: frames that each big blank skips.

    Returns:
      The label arc, the standard blank, then the big blanks in the order given.

    Raises:
      ValueError: if a duration is below 2 or there twice.
    """
    durations = as_durations("big_blank_durations", big_blank_durations, least=2, most=MAX_ARCS - 2)
    return (Arc(0, True), Arc(1, False), *(Arc(d, False) for d in durations))


def tdt_arcs(durations: Sequence[int]) -> tuple[Arc, ...]:
    """The arcs of a token-and-duration transducer (arXiv 2304.06795).

    Args:
      durations: the durations that the model predicts, distinct and in any order.

    Returns:
      A label arc for every duration, then a blank for every duration of at least 1.

    Raises:
      ValueError: if a duration is negative or there twice, or none is of a frame or more.
    """
    checked = as_durations("durations", durations, least=0, most=MAX_ARCS // 2)
    if not any(d >= 1 for d in checked):
        raise ValueError(f"durations: expected one of a frame or more among them, got {checked}")
    return (*(Arc(d, True) for d in checked), *(Arc(d, False) for d in checked if d >= 1))


def validate_arcs(arcs: Sequence[tuple[int, bool]]) -> tuple[Arc, ...]:
    """Returns `arcs` as a hashable tuple of `Arc`; `ValueError` for an arc that cannot be."""
    checked = tuple(
        Arc(as_integer(f"arcs[{i}]", duration), bool(emits))
        for i, (duration, emits) in enumerate(arcs)
    )
    if not 1 <= len(checked) <= MAX_ARCS:
        raise ValueError(f"arcs: expected 1 to {MAX_ARCS} arcs, got {len(checked)}")
    for i, arc in enumerate(checked):
        least = 0 if arc.emits else 1
        if not least <= arc.duration < 2**31:
            raise ValueError(
                f"arcs[{i}]: expected a duration of at least {least} for a "
                f"{'label' if arc.emits else 'blank'} arc, got {arc.duration}"
            )
    return checked


def validate_emission(
    emission: tuple[Sequence[int], Sequence[Sequence[int]]], num_arcs: int, num_scores: int
) -> Emission:
    """Returns `emission` as hashable tuples; `ValueError` for one that cannot be."""
    heads = tuple(as_integer(f"heads[{h}]", size) for h, size in enumerate(emission[0]))
    if not 1 <= len(heads) <= MAX_HEADS or min(heads) < 1 or sum(heads) != num_scores:
        raise ValueError(
            f"heads: expected 1 to {MAX_HEADS} sizes of at least 1 that add up to the "
            f"{num_scores} scores of a row, got {heads}"
        )
    reads = tuple(
        tuple(as_integer(f"reads[{a}]", v) for v in of_arc) for a, of_arc in enumerate(emission[1])
    )
    if len(reads) != num_arcs:
        raise ValueError(f"reads: expected one for each of {num_arcs} arcs, got {len(reads)}")
    for a, of_arc in enumerate(reads):
        least = (NEXT_LABEL, *(0,) * (len(heads) - 1))  # labels are classes of the first head
        sound = len(of_arc) == len(heads) and all(
            v == NOTHING or low <= v < size
            for v, low, size in zip(of_arc, least, heads, strict=True)
        )
        if not sound:
            raise ValueError(
                f"reads[{a}]: expected for each of the heads {heads} a class of it, NOTHING or, of "
                f"the first one, NEXT_LABEL, got {of_arc}"
            )
    return Emission(heads, reads)


def as_durations(name: str, durations: Iterable[int], *, least: int, most: int) -> tuple[int, ...]:
    """As a tuple; `ValueError` if one is below `least` or there twice, or more than `most`."""
    checked = tuple(as_integer(f"{name}[{i}]", d) for i, d in enumerate(durations))
    for i, d in enumerate(checked):
        if not least <= d < 2**31:
            raise ValueError(f"{name}[{i}]: expected a duration of at least {least}, got {d}")
        if d in checked[:i]:
            raise ValueError(f"{name}: expected distinct durations, got {d} twice in {checked}")
    if len(checked) > most:
        raise ValueError(f"{name}: expected at most {most} durations, got {len(checked)}")
    return checked


def as_class(name: str, value: Any, num_classes: int) -> int:
    """A class of `num_classes`, counted from the end if negative; `ValueError` if there is none."""
    v = as_integer(name, value)
    if not -num_classes <= v < num_classes:
        raise ValueError(
            f"{name}: expected a class in [{-num_classes}, {num_classes}) "
            f"(V = {num_classes} classes), got {v}"
        )
    return v + num_classes if v < 0 else v
