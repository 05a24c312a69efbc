"""What makes an utterance sound otherwise each time that it is learnt."""

import dataclasses

import numpy as np

from speech.spec_augment import SpecAugment

NO_MASKS = SpecAugment(band_masks=0, time_masks=0)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Of features.

    Attributes:
      most_cut: frames that are cut off at the start, at most: so the encoder's frames, and the
        jumps over them, begin at another place of each word.
      masks: of bands and frames. They help in noise, and cost words without it: see the study.
      noise: standard deviation of what is added.
    """

    most_cut: int = 7
    masks: SpecAugment = NO_MASKS
    noise: float = 0.1

    def __call__(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns features `[F', bands]` of features `[F, bands]`."""
        heard = self.masks(features[rng.integers(self.most_cut, endpoint=True) :], rng)
        return heard + np.float32(self.noise) * rng.standard_normal(heard.shape, np.float32)
