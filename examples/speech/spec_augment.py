"""SpecAugment: masked bands and frames (Park et al. 2019, arXiv 1904.08779)."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """How much is masked.

    Attributes:
      band_masks: how many masks of bands.
      most_bands: the widest of them.
      time_masks: how many masks of frames.
      most_time: the longest of them, as a share of the utterance (arXiv 1912.05533).
    """

    band_masks: int = 2
    most_bands: int = 27
    time_masks: int = 10
    most_time: float = 0.05

    def __call__(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns features `[F, bands]` some bands and frames of which are the others' mean."""
        masked, mean = features.copy(), features.mean()

        def some(size: int, most: float) -> slice:
            width = rng.integers(int(most), endpoint=True)
            start = rng.integers(size - width, endpoint=True)
            return slice(start, start + width)

        frames, bands = features.shape
        for _ in range(self.band_masks):
            masked[:, some(bands, min(self.most_bands, bands))] = mean
        for _ in range(self.time_masks):
            masked[some(frames, self.most_time * frames)] = mean
        return masked
