"""What the study compares: transducers, and ways to train them."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from jax_mbrnnt import Transducer
from speech.spec_augment import SpecAugment
from spoken_words.augmentation import Augmentation
from spoken_words.recipe import Recipe

CONSTANT = ((0.0, 1.0),)
RISING = ((0.3, 0.0), (0.7, 1.0))
MASKS = SpecAugment(band_masks=1, most_bands=5, time_masks=3, most_time=0.015)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recogniser, and how it is trained."""

    transducer: Transducer
    recipe: Recipe

    @property
    def shorter(self) -> list[int]:
        """The longest durations to try when decoding: without the longest one, and of 1 frame."""
        durations = sorted({arc.duration for arc in self.transducer.arcs if arc.duration > 0})
        return list(dict.fromkeys([durations[-2], 1])) if len(durations) > 1 else []


def arms(recipe: Recipe) -> dict[str, Arm]:
    """All of them by name; the ones that others are compared with first."""
    return dict(_arms(recipe))


def _arms(recipe: Recipe) -> Iterator[tuple[str, Arm]]:
    def changed(names: Iterable[str], how: str, **values: Any) -> Iterator[tuple[str, Arm]]:
        other = dataclasses.replace(recipe, **values)
        for name in names:
            yield f"{name}{how}", Arm(other.transducers[name], other)

    everybody = recipe.transducers
    jumping = ("multi-blank", "TDT")
    sigma = recipe.sigma

    yield from changed(everybody, "")
    yield from changed(["TDT"], ", omega 0", tdt_omega=0.0)
    yield from changed(["multi-blank"], ", omega 0.1", multiblank_omega=0.1)
    yield from changed(["multi-blank"], ", FastEmit 0", multiblank_fastemit=0.0)
    held = {"multiblank_held": 0.15, "sigma": 0.1}
    yield from changed(["multi-blank"], ", held 0.15, sigma 0.1", **held)
    yield from changed(jumping, f", sigma {sigma} throughout", sigma_shares=CONSTANT)
    yield from changed(jumping, f", sigma from 0 to {sigma}", sigma_shares=RISING)
    yield from changed(jumping, ", sigma 0", sigma_shares=((0.0, 0.0),))
    yield from changed(everybody, ", masks", augmentation=Augmentation(masks=MASKS))
    yield from changed(everybody, ", nothing cut off", augmentation=Augmentation(most_cut=0))
    yield from changed(everybody, ", half the steps", steps=recipe.steps // 2)
    yield from changed(everybody, ", twice the steps", steps=2 * recipe.steps)
    for durations in ((2,), (2, 4), (2, 4, 8), tuple(range(2, 9))):
        name = ", ".join(map(str, durations)) if len(durations) < 4 else "2 to 8"
        yield from changed(["multi-blank"], f" of {name}", big_blank_durations=durations)
    yield from changed(["TDT"], " of 0 to 8", durations=tuple(range(9)))
