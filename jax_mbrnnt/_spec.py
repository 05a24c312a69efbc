"""Which arcs a transducer has, which classes they read, and which options are sound.

Knows no JAX: everything here is static and is settled before tracing.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

# The C++ side's kMaxArcs and kNextLabel (lattice/).
MAX_ARCS = 32
NEXT_LABEL = -1

# Options become float32 in the kernels of float32 logits: its largest number, and its least one
# that no processor takes for 0.
_LARGEST, _LEAST = (2 - 2**-23) * 2.0**127, 2.0**-126


def as_integer(name: str, value: Any) -> int:
    """`value` as an `int`; `TypeError` naming the argument for what is none, 2.5 included."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None


def as_number(name: str, value: Any) -> float:
    """`value` as a `float` that is finite in float32, too; an error naming the argument if not."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected a number that is known while tracing, got {value!r}"
        ) from None
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{name}: expected a number that is finite in float32, got {number}")
    return number


class Arc(NamedTuple):
    """One kind of step through the lattice.

    Attributes:
      duration: frames that the step takes, at least 0.
      emits: True if it takes the next label, False for a blank (whose duration is at
        least 1).
    """

    duration: int
    emits: bool


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
    durations = validate_durations(big_blank_durations)
    return (Arc(0, True), Arc(1, False), *(Arc(d, False) for d in durations))


def tdt_arcs(durations: Sequence[int]) -> tuple[Arc, ...]:
    """The arcs of a token-and-duration transducer (arXiv 2304.06795).

    Args:
      durations: the durations that the model predicts.

    Returns:
      A label arc for every duration, then a blank for every duration of at least 1.

    Raises:
      ValueError: if a duration is negative.
    """
    durations = [as_integer(f"durations[{i}]", d) for i, d in enumerate(durations)]
    for i, d in enumerate(durations):
        if d < 0:
            raise ValueError(f"durations[{i}]: expected a duration of at least 0, got {d}")
    labels = (Arc(d, True) for d in durations)
    return (*labels, *(Arc(d, False) for d in durations if d >= 1))


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


def validate_durations(big_blank_durations: Sequence[int]) -> tuple[int, ...]:
    """Returns the durations as a tuple; `ValueError` if one is below 2 or there twice."""
    durations = tuple(
        as_integer(f"big_blank_durations[{i}]", d) for i, d in enumerate(big_blank_durations)
    )
    for i, d in enumerate(durations):
        if not 2 <= d < 2**31:
            raise ValueError(
                f"big_blank_durations[{i}]: expected a duration of at least 2, got {d}"
            )
        if d in durations[:i]:
            raise ValueError(
                f"big_blank_durations: expected distinct durations, got {d} twice in {durations}"
            )
    if len(durations) > MAX_ARCS - 2:
        raise ValueError(
            f"big_blank_durations: expected at most {MAX_ARCS - 2} durations, got {len(durations)}"
        )
    return durations


def blank_classes(
    blank_id: int, big_blank_durations: Sequence[int], num_classes: int
) -> tuple[int, ...]:
    """The classes of the standard blank and of every big blank, in this order.

    The convention of ESPnet and NeMo: labels first, then the big blanks, the standard
    blank last; big blank i is class `blank_id - 1 - i`.

    Args:
      blank_id: class of the standard blank; negative counts from the end.
      big_blank_durations: one per big blank.
      num_classes: V, the size of the logits' last axis.

    Raises:
      ValueError: if a blank falls outside [0, V).
    """
    blank_id = as_integer("blank_id", blank_id)
    blank = blank_id + num_classes if blank_id < 0 else blank_id
    if not 0 <= blank < num_classes:
        raise ValueError(
            f"blank_id: expected a class in [{-num_classes}, {num_classes}) "
            f"for logits with V = {num_classes} classes, got {blank_id}"
        )
    lowest = blank - len(big_blank_durations)
    if lowest < 0:
        raise ValueError(
            f"blank_id: expected at least {len(big_blank_durations)} classes below the blank for "
            f"the big blanks {tuple(big_blank_durations)}, got blank_id = {blank}, which puts the "
            f"last big blank in class {lowest}"
        )
    return tuple(range(blank, lowest - 1, -1))


@dataclasses.dataclass(frozen=True)
class Options:
    """The static options of a multi-blank loss, checked. Hashable."""

    blank_id: int = -1
    big_blank_durations: tuple[int, ...] = ()
    sigma: float = 0.0
    fastemit_lambda: float = 0.0
    clamp: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "blank_id", as_integer("blank_id", self.blank_id))
        durations = validate_durations(self.big_blank_durations)
        object.__setattr__(self, "big_blank_durations", durations)
        for name in ("sigma", "fastemit_lambda", "clamp"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        if self.fastemit_lambda < -1:
            raise ValueError(
                "fastemit_lambda: expected at least -1, where labels weigh nothing, "
                f"got {self.fastemit_lambda}"
            )
        if self.clamp != 0 and not self.clamp >= _LEAST:
            raise ValueError(
                f"clamp: expected 0 (none) or a bound of at least {_LEAST:.3g}, got {self.clamp}"
            )

    @property
    def arcs(self) -> tuple[Arc, ...]:
        """The label arc, the standard blank, then the big blanks, as `multiblank_arcs` has them."""
        return multiblank_arcs(self.big_blank_durations)

    def arc_classes(self, num_classes: int) -> tuple[int, ...]:
        """The class that each of `arcs` reads; `NEXT_LABEL` for the label arc."""
        return (NEXT_LABEL, *self.blanks(num_classes))

    def blanks(self, num_classes: int) -> tuple[int, ...]:
        """The classes of the standard blank and of the big ones, which no label may be."""
        return blank_classes(self.blank_id, self.big_blank_durations, num_classes)
