"""The recogniser that a configuration describes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sentences.config import Config
from sentences.conformer import Conformer
from speech.batches import Batch
from speech.classes import inputs_of_prediction, scores_for
from speech.log_mel import FRAME_SECONDS
from speech.prediction import LSTM, Stateless
from speech.recogniser import Recogniser

_IMPOSSIBLE = 1e4  # nats: Optax has a large number in the place of infinity


class SentenceRecogniser(Recogniser):
    """With a second output for training: pieces that the encoder's frames say by themselves.

    A prediction network learns to write sooner than an encoder learns to hear, and in a small
    corpus it learns the transcripts by heart. CTC does not let it.
    """

    def __init__(self, *args: Any, labels: int, rngs: nnx.Rngs, **options: Any):
        super().__init__(*args, rngs=rngs, **options)
        width = self.output.in_features
        self.frames_alone = nnx.Linear(width, labels + 1, dtype=self.output.dtype, rngs=rngs)

    def ctc_losses(self, encoded: jax.Array, lengths: jax.Array, batch: Batch) -> jax.Array:
        """Returns CTC's losses `[B]`; 0 where a transcript has too many pieces for it."""
        logits = self.frames_alone(encoded).astype(jnp.float32)
        is_padding = jnp.arange(logits.shape[1]) >= lengths[:, None]
        after = jnp.arange(batch.labels.shape[1]) >= batch.label_lengths[:, None]
        losses = optax.ctc_loss(
            *(logits, is_padding.astype(jnp.float32), batch.labels, after.astype(jnp.float32)),
            blank_id=logits.shape[-1] - 1,
        )
        return jnp.where(losses < _IMPOSSIBLE, losses, 0.0)


def make_recogniser(config: Config, labels: int, seed: int) -> SentenceRecogniser:
    """Returns a recogniser of so many pieces, with random parameters."""
    rngs = nnx.Rngs(seed)
    dtype = jnp.dtype(config.encoder.dtype)
    transducer = config.transducer.make()
    scores = scores_for(transducer, labels)
    network = LSTM if config.prediction.kind == "lstm" else Stateless
    prediction = network(
        *inputs_of_prediction(transducer, scores),
        *(config.joint, config.prediction.size),
        dtype=dtype,
        rngs=rngs,
    )
    encoder = Conformer(config.encoder, config.audio.bands, config.joint, rngs=rngs)
    return SentenceRecogniser(
        *(transducer, encoder, prediction, config.joint, scores),
        labels=labels,
        dtype=dtype,
        rngs=rngs,
    )


def set_statistics(recogniser: Recogniser, mean: np.ndarray, deviation: np.ndarray) -> None:
    """Lets the encoder's input have zero mean and unit variance in each band."""
    recogniser.encoder.mean[...] = jnp.asarray(mean)
    recogniser.encoder.deviation[...] = jnp.asarray(deviation)


def encoder_frame_seconds(config: Config) -> float:
    """Returns how long a frame of the encoder is."""
    return FRAME_SECONDS * 2**config.encoder.halvings
