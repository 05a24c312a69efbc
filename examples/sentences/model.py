"""The recogniser that a configuration describes."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sentences.config import Config
from sentences.conformer import Conformer
from speech.classes import scores_for
from speech.log_mel import FRAME_SECONDS
from speech.prediction import LSTM, Stateless
from speech.recogniser import Recogniser


def make_recogniser(config: Config, labels: int, seed: int) -> Recogniser:
    """Returns a recogniser of so many pieces, with random parameters."""
    rngs = nnx.Rngs(seed)
    dtype = jnp.dtype(config.encoder.dtype)
    transducer = config.transducer.make()
    scores = scores_for(transducer, labels)
    emission = transducer.emission(scores)
    network = LSTM if config.prediction.kind == "lstm" else Stateless
    prediction = network(
        # The blank also stands for what was said before the start.
        *(emission.num_labels, emission.blanks[0], config.joint, config.prediction.size),
        dtype=dtype,
        rngs=rngs,
    )
    encoder = Conformer(config.encoder, config.audio.bands, config.joint, rngs=rngs)
    return Recogniser(
        *(transducer, encoder, prediction, config.joint, scores), dtype=dtype, rngs=rngs
    )


def set_statistics(recogniser: Recogniser, mean: np.ndarray, deviation: np.ndarray) -> None:
    """Lets the encoder's input have zero mean and unit variance in each band."""
    recogniser.encoder.mean[...] = jnp.asarray(mean)
    recogniser.encoder.deviation[...] = jnp.asarray(deviation)


def encoder_frame_seconds(config: Config) -> float:
    """Returns how long a frame of the encoder is."""
    return FRAME_SECONDS * 2**config.encoder.halvings
