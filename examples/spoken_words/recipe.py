"""Every number of the experiment in one place."""

import dataclasses

from jax_mbrnnt import TDT, MultiblankRNNT, Transducer
from speech.schedule import share_at
from spoken_words.augmentation import Augmentation


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is spoken, how large the recognisers are, and how they are trained.

    Attributes:
      vocabulary: how many of the words are used; all of them if None.
      words_per_utterance: the fewest and the most words of an utterance.
      training_utterances: how many different utterances the recognisers are trained on.
      test_utterances: how many utterances they are tested on; best a multiple of `batch_size`,
        for a smaller last batch would be compiled on its own.
      width: channels of the encoder, the prediction network and the joint.
      dilations: dilation of each convolution block of the encoder.
      context: how many of the last characters the prediction network sees.
      augmentation: of the utterances in training.
      batch_size: utterances of a training step.
      buckets: groups of utterances of like length; each is padded, and compiled, on its own.
      steps: training steps.
      warmup_steps: steps over which the learning rate rises to its peak.
      peak_learning_rate: after the warm-up; it then falls along a cosine to 2 % of this.
      weight_decay: of AdamW.
      max_gradient_norm: gradients are clipped to this global norm.
      checkpoint_every: steps between two checkpoints.
      big_blank_durations: frames (of 40 ms) that the multi-blank recogniser's big blanks cover.
      durations: frames that a character or a blank of the TDT covers.
      tdt_omega: share of the utterances that the TDT learns without jumps of several frames. So
        it learns what to do at every frame, also at those that it would have skipped.
      multiblank_omega: the same of multi-blank, which then jumps much less.
      multiblank_held: share of the frames, drawn anew in every step, at which multi-blank may not
        jump. So it comes to other frames, and learns what to do at those, too.
      multiblank_fastemit: by how much its labels are favoured over blanks, and so over jumps.
      sigma: logit under-normalisation of these two. Without any they hardly learn to skip frames.
      sigma_shares: how much of it counts when: shares of the steps and of sigma, linear in between.
        What is left of it at the end costs words: see the study.
    """

    vocabulary: int | None = None
    words_per_utterance: tuple[int, int] = (2, 5)
    training_utterances: int = 3000
    test_utterances: int = 960
    width: int = 128
    dilations: tuple[int, ...] = (1, 2, 4, 2, 1)
    context: int = 4
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    batch_size: int = 8
    buckets: int = 3
    steps: int = 1400
    warmup_steps: int = 100
    peak_learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    max_gradient_norm: float = 5.0
    checkpoint_every: int = 200
    big_blank_durations: tuple[int, ...] = (3, 6)
    durations: tuple[int, ...] = (0, 1, 2, 3, 4)
    tdt_omega: float = 0.1
    multiblank_omega: float = 0.0
    multiblank_held: float = 0.0
    multiblank_fastemit: float = 0.02
    sigma: float = 0.05
    sigma_shares: tuple[tuple[float, float], ...] = ((0.4, 1.0), (0.8, 0.0))

    def sigma_share(self, step: int) -> float:
        """How much of sigma counts in a step."""
        return share_at(self.sigma_shares, step / self.steps)

    @property
    def transducers(self) -> dict[str, Transducer]:
        """The recognisers to compare; all that differs between them is said here."""
        big = MultiblankRNNT(
            big_blank_durations=self.big_blank_durations,
            sigma=self.sigma,
            fastemit_lambda=self.multiblank_fastemit,
        )
        tdt = TDT(durations=self.durations, sigma=self.sigma)
        return {"RNN-T": MultiblankRNNT(), "multi-blank": big, "TDT": tdt}

    def omega_of(self, transducer: Transducer) -> float:
        """The share of the utterances that it learns without jumps."""
        return self.tdt_omega if isinstance(transducer, TDT) else self.multiblank_omega

    def held_of(self, transducer: Transducer) -> float:
        """The share of the frames at which it may not jump."""
        return 0.0 if isinstance(transducer, TDT) else self.multiblank_held


FULL = Recipe()

# Small enough for continuous integration: few words, short strings, a narrow encoder.
QUICK = Recipe(
    vocabulary=10,
    words_per_utterance=(2, 4),
    training_utterances=600,
    test_utterances=64,
    width=64,
    dilations=(1, 2, 4),
    batch_size=16,
    buckets=1,
    steps=300,
    warmup_steps=40,
    peak_learning_rate=4e-3,
)
