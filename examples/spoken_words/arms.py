"""What the study compares: transducers, and ways to train them."""

import dataclasses
from collections.abc import Iterator

from jax_mbrnnt import TDT, MultiblankRNNT, Transducer
from recipe import Recipe

CONSTANT = ((0.0, 1.0),)
RISING = ((0.3, 0.0), (0.7, 1.0))


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
    sigma = recipe.sigma

    def multiblank(*durations: int) -> Transducer:
        return MultiblankRNNT(big_blank_durations=durations, sigma=sigma)

    def tdt(longest: int) -> Transducer:
        return TDT(durations=tuple(range(longest + 1)), sigma=sigma)

    twice = dataclasses.replace(recipe, steps=2 * recipe.steps)
    yield "RNN-T", Arm(MultiblankRNNT(), recipe)
    yield "multi-blank 2, 4, 8", Arm(multiblank(2, 4, 8), recipe)
    yield "TDT 0 to 4", Arm(tdt(4), recipe)
    yield "RNN-T, twice the steps", Arm(MultiblankRNNT(), twice)
    yield "multi-blank 2, 4, 8, twice the steps", Arm(multiblank(2, 4, 8), twice)
    yield "TDT 0 to 4, twice the steps", Arm(tdt(4), twice)
    of_sigma = {
        f"sigma {sigma} throughout": dataclasses.replace(recipe, sigma_shares=CONSTANT),
        f"sigma from 0 to {sigma}": dataclasses.replace(recipe, sigma_shares=RISING),
        "sigma 0": dataclasses.replace(recipe, sigma_shares=((0.0, 0.0),)),
    }
    for how, other in of_sigma.items():
        yield f"multi-blank 2, 4, 8, {how}", Arm(multiblank(2, 4, 8), other)
        yield f"TDT 0 to 4, {how}", Arm(tdt(4), other)
    yield "multi-blank 2", Arm(multiblank(2), recipe)
    yield "multi-blank 2, 4", Arm(multiblank(2, 4), recipe)
    yield "multi-blank 2 to 8", Arm(multiblank(*range(2, 9)), recipe)
    yield "TDT 0 to 8", Arm(tdt(8), recipe)
