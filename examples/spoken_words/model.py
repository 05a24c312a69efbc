"""A small transducer in Flax NNX: encoder, stateless prediction network, joint."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_mbrnnt import Transducer
from speech import recogniser
from speech.batches import Batch
from speech.classes import inputs_of_prediction, scores_for
from speech.log_mel import FRAME_SECONDS
from speech.prediction import Stateless
from spoken_words.features import CHARACTERS, FILTERS
from spoken_words.recipe import Recipe

SUBSAMPLING = 4
"""Feature frames to an encoder frame, which so is 40 ms long."""

ENCODER_FRAME_SECONDS = SUBSAMPLING * FRAME_SECONDS


class ConvolutionBlock(nnx.Module):
    """A dilated convolution over time with a residual connection."""

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(
            width, width, kernel_size=5, kernel_dilation=dilation, rngs=rngs
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, hidden: jax.Array, is_valid: jax.Array) -> jax.Array:
        """Maps `[B, T, H]` to `[B, T, H]`; `is_valid` is `[B, T, 1]`."""
        # Padding must stay zero: an utterance shall not sound otherwise beside a longer one.
        return hidden + is_valid * nnx.silu(self.norm(self.convolution(hidden * is_valid)))


class Encoder(nnx.Module):
    """Stacks four feature frames into one and looks at its neighbourhood."""

    def __init__(self, width: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs):
        self.input = nnx.Linear(SUBSAMPLING * FILTERS.bands, width, rngs=rngs)
        self.blocks = nnx.Sequential(*(ConvolutionBlock(width, d, rngs=rngs) for d in dilations))
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the encoded utterances `[B, T, H]`, T = F // 4, and their lengths `[B]`."""
        frames = batch.features.shape[1] // SUBSAMPLING
        lengths = jnp.asarray(batch.feature_lengths) // SUBSAMPLING
        return self.encode(batch.features, jnp.arange(frames) < lengths[:, None]), lengths

    def encode(self, features: np.ndarray | jax.Array, is_valid: jax.Array) -> jax.Array:
        """Encodes `[B, F, bands]`, of which `is_valid` `[B, F // 4]` says what there is."""
        size, frames = is_valid.shape
        stacked = jnp.asarray(features)[:, : frames * SUBSAMPLING].reshape(size, frames, -1)
        hidden = nnx.silu(self.input(stacked))
        for block in self.blocks.layers:  # each takes the validity, too
            hidden = block(hidden, is_valid[..., None])
        return self.output(hidden)

    @property
    def reach(self) -> int:
        """How many frames before and behind a frame are heard with it."""
        return sum(2 * block.convolution.kernel_dilation for block in self.blocks.layers)


class Recogniser(recogniser.Recogniser):
    """A transducer over characters, which are its first classes."""

    def __init__(self, recipe: Recipe, transducer: Transducer, *, rngs: nnx.Rngs):
        scores = scores_for(transducer, len(CHARACTERS))
        encoder = Encoder(recipe.width, recipe.dilations, rngs=rngs)
        classes, start = inputs_of_prediction(transducer, scores)
        prediction = Stateless(classes, start, recipe.width, recipe.context, rngs=rngs)
        super().__init__(transducer, encoder, prediction, recipe.width, scores, rngs=rngs)
