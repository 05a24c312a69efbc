"""A small transducer in Flax NNX: encoder, stateless prediction network, joint."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from features import CHARACTERS, FRAME_SECONDS, MEL_BANDS, Batch
from jax_mbrnnt import (
    BeamDecoding,
    GreedyDecoding,
    GreedyStream,
    Transducer,
    beam_decode,
    greedy_decode,
)
from recipe import Recipe

SUBSAMPLING = 4
"""Feature frames to an encoder frame, which so is 40 ms long."""

ENCODER_FRAME_SECONDS = SUBSAMPLING * FRAME_SECONDS

_MOST_SYMBOLS = 20
"""At a frame: after a long jump several characters come at once."""


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
        self.input = nnx.Linear(SUBSAMPLING * MEL_BANDS, width, rngs=rngs)
        self.blocks = nnx.Sequential(*(ConvolutionBlock(width, d, rngs=rngs) for d in dilations))
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the encoded utterances `[B, T, H]`, T = F // 4, and their lengths `[B]`."""
        frames = batch.features.shape[1] // SUBSAMPLING
        lengths = jnp.asarray(batch.feature_lengths) // SUBSAMPLING
        return self.encode(batch.features, jnp.arange(frames) < lengths[:, None]), lengths

    def encode(self, features: np.ndarray | jax.Array, is_valid: jax.Array) -> jax.Array:
        """Encodes `[B, F, MEL_BANDS]`, of which `is_valid` `[B, F // 4]` says what there is."""
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


class Prediction(nnx.Module):
    """Sees the last few labels, and has no other memory."""

    def __init__(self, classes: int, context: int, width: int, *, rngs: nnx.Rngs):
        self.context = context
        self.embedding = nnx.Embed(classes, width // context, rngs=rngs)
        self.output = nnx.Linear(width // context * context, width, rngs=rngs)

    def __call__(self, recent_labels: jax.Array) -> jax.Array:
        """Maps the last labels `[..., context]`, oldest first, to `[..., H]`."""
        embedded = self.embedding(recent_labels)
        return self.output(embedded.reshape(*recent_labels.shape[:-1], -1))


def scores_for(transducer: Transducer, labels: int) -> int:
    """Returns how many scores a node has for so many labels: blanks and other heads add theirs."""
    scores = labels + 100  # enough for any
    emission = transducer.emission(scores)
    return scores - (emission.num_labels - len(emission.blanks) - labels)


def durations_of_classes(transducer: Transducer, scores: int) -> list[set[int]]:
    """Returns of each class `[V]` the durations of the arcs that read it by its number."""
    emission = transducer.emission(scores)
    arcs = list(zip(transducer.arcs, emission.reads, strict=True))
    return [
        {arc.duration for arc, reads in arcs if reads[h] == v}
        for h, size in enumerate(emission.heads)
        for v in range(size)
    ]


def durations_in_nats(transducer: Transducer, scores: int) -> np.ndarray:
    """Returns a bias `[V]` by which a class is the more probable the longer it takes.

    Training from there is faster than from equal classes.
    """
    # A class of several durations leaves open how long it takes.
    of_classes = durations_of_classes(transducer, scores)
    return np.array([np.log(max(1, *d)) if len(d) == 1 else 0.0 for d in of_classes])


def jump_classes(transducer: Transducer, scores: int) -> np.ndarray:
    """Returns which classes `[V]` are read by arcs of several frames alone: none of an RNN-T's."""
    return np.array([min(d, default=1) > 1 for d in durations_of_classes(transducer, scores)])


class Recogniser(nnx.Module):
    """A transducer over characters.

    Which kind of transducer it is depends on `transducer` alone, whose first classes are the
    characters: it says how many scores the joint has, and what they mean.
    """

    def __init__(self, recipe: Recipe, transducer: Transducer, *, rngs: nnx.Rngs):
        self.transducer = transducer
        scores = scores_for(transducer, len(CHARACTERS))
        emission = transducer.emission(scores)
        self.blank = emission.blanks[0]  # Also fills the prediction network's context at the start.
        self.encoder = Encoder(recipe.width, recipe.dilations, rngs=rngs)
        self.prediction = Prediction(emission.num_labels, recipe.context, recipe.width, rngs=rngs)
        bias = nnx.initializers.constant(durations_in_nats(transducer, scores))
        self.output = nnx.Linear(recipe.width, scores, bias_init=bias, rngs=rngs)

    def joint(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        """Maps `[..., H]` of the encoder and of the prediction network to logits `[..., V]`."""
        hidden = jnp.tanh(encoded + predicted)
        # As rows: else XLA's CPU compiler transposes the logits' gradient for that of the weights.
        logits = self.output(hidden.reshape(-1, hidden.shape[-1]))
        return logits.reshape(*hidden.shape[:-1], -1)

    def inputs_of_joint(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the encoded frames `[B, T, H]`, the predictions `[B, U + 1, H]`, the lengths."""
        encoded, lengths = self.encoder(batch)
        context, labels = self.prediction.context, jnp.asarray(batch.labels)
        padded = jnp.pad(labels, ((0, 0), (context, 0)), constant_values=self.blank)
        recent = jnp.arange(labels.shape[1] + 1)[:, None] + jnp.arange(context)
        return encoded, self.prediction(padded[:, recent]), lengths

    def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the logits `[B, T, U + 1, V]` of the whole lattice and the lengths `[B]` in T."""
        encoded, predicted, lengths = self.inputs_of_joint(batch)
        return self.joint(encoded[:, :, None], predicted[:, None]), lengths

    def losses(
        self,
        batch: Batch,
        sigma_share: ArrayLike,
        has_jumps: ArrayLike,
        chunked_joint: bool,
    ) -> jax.Array:
        """Returns the losses `[B]`, from all logits at once or, the same, a chunk at a time.

        Args:
          batch: the utterances.
          sigma_share: how much of the transducer's sigma counts.
          has_jumps: whether arcs of several frames may be taken; else their classes are left out.
          chunked_joint: whether to make the logits a chunk of frames at a time.
        """
        sigma = jnp.asarray(sigma_share) * self.transducer.sigma
        criterion = dataclasses.replace(self.transducer, sigma=sigma)
        jumps = jump_classes(self.transducer, self.output.out_features)
        mask = jnp.where(jnp.asarray(has_jumps) | ~jumps, 0.0, -jnp.inf)
        if not chunked_joint:
            logits, lengths = self(batch)
            return criterion(logits + mask, batch.labels, lengths, batch.label_lengths)
        encoded, predicted, lengths = self.inputs_of_joint(batch)
        graph, params = nnx.split(self.output)

        def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
            state, mask = params
            output = nnx.merge(graph, state)
            return output(jnp.tanh(encoded[:, :, None] + predicted[:, None])) + mask

        operands = encoded, predicted, batch.labels, lengths, batch.label_lengths
        return criterion.joint_loss(joint, (params, mask), *operands)

    def predict(self, labels: jax.Array, recent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps a further label `[B]` and the last ones `[B, context]` to `[B, H]` and these."""
        recent = jnp.concatenate([recent[:, 1:], labels[:, None]], axis=1)
        return self.prediction(recent), recent

    def nothing_said(self, batch: int) -> jax.Array:
        """Returns the last labels `[B, context]` of whoever begins to speak."""
        return jnp.full((batch, self.prediction.context), self.blank, jnp.int32)

    def decode(self, batch: Batch, max_duration: int | None = None) -> GreedyDecoding:
        """Recognises the utterances (no label is looked at), taking the best class at each node."""
        return self.search(*self.encoder(batch), max_duration)

    def decode_with_beam(self, batch: Batch, beam: int) -> BeamDecoding:
        """Recognises the utterances as the most probable characters over all alignments."""
        return self.search_with_beam(*self.encoder(batch), beam)

    def search(
        self, encoded: jax.Array, lengths: jax.Array, max_duration: int | None = None
    ) -> GreedyDecoding:
        """What `decode` does with encoded utterances."""
        return greedy_decode(
            *(self.transducer, self.joint, self.predict, encoded, lengths),
            initial_state=self.nothing_said(len(encoded)),
            max_symbols_per_frame=_MOST_SYMBOLS,
            max_labels=encoded.shape[1],  # Nobody says more than a character every 40 ms.
            max_duration=max_duration,
        )

    def search_with_beam(self, encoded: jax.Array, lengths: jax.Array, beam: int) -> BeamDecoding:
        """What `decode_with_beam` does with encoded utterances."""
        return beam_decode(
            *(self.transducer, self.joint, self.predict, encoded, lengths),
            initial_state=self.nothing_said(len(encoded)),
            beam=beam,
        )

    def stream(self) -> GreedyStream:
        """Returns what recognises one speaker, chunk by chunk of encoded frames."""
        return GreedyStream(
            self.transducer,
            self.joint,
            self.predict,
            initial_state=self.nothing_said(1),
            max_symbols_per_frame=_MOST_SYMBOLS,
        )
