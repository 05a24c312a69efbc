"""What the study compares: transducers, and ways to train them."""

import dataclasses
from collections.abc import Iterator

from jax_mbrnnt import TDT, MultiblankRNNT, Transducer
from spoken_words.recipe import Recipe

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

    for name, transducer in recipe.transducers.items():
        yield name, Arm(transducer, recipe)
    others = {
        f"sigma {sigma} throughout": dataclasses.replace(recipe, sigma_shares=CONSTANT),
        f"sigma from 0 to {sigma}": dataclasses.replace(recipe, sigma_shares=RISING),
        "sigma 0": dataclasses.replace(recipe, sigma_shares=((0.0, 0.0),)),
        "omega 0.05": dataclasses.replace(recipe, omega=0.05),
        "omega 0.02": dataclasses.replace(recipe, omega=0.02),
        "FastEmit 0.02": dataclasses.replace(recipe, fastemit_lambda=0.02),
        "half the steps": dataclasses.replace(recipe, steps=recipe.steps // 2),
        "twice the steps": dataclasses.replace(recipe, steps=2 * recipe.steps),
    }
    for how, other in others.items():
        for name, transducer in other.transducers.items():
            if name != "RNN-T" or "steps" in how:
                yield f"{name}, {how}", Arm(transducer, other)
    for durations in ((2,), (2, 4), (2, 4, 8), tuple(range(2, 9))):
        name = ", ".join(map(str, durations)) if len(durations) < 4 else "2 to 8"
        multiblank = MultiblankRNNT(big_blank_durations=durations, sigma=sigma)
        yield f"multi-blank of {name}", Arm(multiblank, recipe)
    yield "TDT of 0 to 8", Arm(TDT(durations=tuple(range(9)), sigma=sigma), recipe)
