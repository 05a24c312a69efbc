"""A transducer model in Flax NNX: an encoder, a prediction network, and the joint over both."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jax_mbrnnt import (
    BeamDecoding,
    GreedyDecoding,
    GreedyStream,
    Transducer,
    beam_decode,
    greedy_decode,
)
from speech.batches import Batch
from speech.classes import durations_in_nats, jump_classes
from speech.prediction import Prediction

_MOST_SYMBOLS = 20
"""At a frame: after a long jump several labels come at once."""


class Encoder(Protocol):
    """Every encoder."""

    def __call__(self, batch: Batch, /, *dropout: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the encoded utterances `[B, T, H]`, and their lengths `[B]`.

        One that has dropout takes its key in training.
        """
        ...


class Recogniser(nnx.Module):
    """A transducer.

    Which kind of transducer it is depends on `transducer` alone: it says how many scores the joint
    has, and what they mean.

    Args:
      transducer: loss, and what a search does with scores.
      encoder: of frames; its width `H` is that of the joint.
      prediction: of labels; likewise.
      width: `H`.
      scores: how many a node has, `speech.classes.scores_for(transducer, labels)`.
      dtype: of the joint's numbers; parameters are float32.
      rngs: for the joint's parameters.
    """

    def __init__(
        self,
        transducer: Transducer,
        encoder: Encoder,
        prediction: Prediction,
        width: int,
        scores: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.transducer = transducer
        self.encoder = encoder
        self.prediction = prediction
        bias = nnx.initializers.constant(durations_in_nats(transducer, scores))
        self.output = nnx.Linear(width, scores, bias_init=bias, dtype=dtype, rngs=rngs)

    def joint(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        """Maps `[..., H]` of the encoder and of the prediction network to logits `[..., V]`."""
        hidden = jnp.tanh(encoded + predicted)
        # As rows: else XLA's CPU compiler transposes the logits' gradient for that of the weights.
        logits = self.output(hidden.reshape(-1, hidden.shape[-1]))
        return logits.reshape(*hidden.shape[:-1], -1)

    def inputs_of_joint(
        self, batch: Batch, *dropout: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the encoded frames `[B, T, H]`, the predictions `[B, U + 1, H]`, the lengths."""
        encoded, lengths = self.encoder(batch, *dropout)
        return encoded, self.prediction(jnp.asarray(batch.labels)), lengths

    def __call__(self, batch: Batch, *dropout: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the logits `[B, T, U + 1, V]` of the whole lattice and the lengths `[B]` in T."""
        encoded, predicted, lengths = self.inputs_of_joint(batch, *dropout)
        return self.joint(encoded[:, :, None], predicted[:, None]), lengths

    def losses(self, batch: Batch, *dropout: Any, **options: Any) -> jax.Array:
        """Returns the losses `[B]`; `dropout`: what the encoder takes beside the utterances.

        `options`: those of `losses_of`.
        """
        return self.losses_of(self.inputs_of_joint(batch, *dropout), batch, **options)

    def losses_of(
        self,
        inputs_of_joint: tuple[jax.Array, jax.Array, jax.Array],
        batch: Batch,
        *,
        sigma_share: ArrayLike = 1.0,
        may_jump: ArrayLike = True,
        chunked_joint: bool = True,
    ) -> jax.Array:
        """Returns the losses `[B]`, from all logits at once or, the same, a chunk at a time.

        Args:
          inputs_of_joint: of the utterances.
          batch: them.
          sigma_share: how much of the transducer's sigma counts.
          may_jump: where arcs of several frames may be taken, broadcast to `[B, T]`; elsewhere
            their classes are left out.
          chunked_joint: whether to make the logits a chunk of frames at a time.
        """
        encoded, predicted, lengths = inputs_of_joint
        sigma = jnp.asarray(sigma_share) * self.transducer.sigma
        criterion = dataclasses.replace(self.transducer, sigma=sigma)
        jumps = jump_classes(self.transducer, self.output.out_features)

        def left(logits: jax.Array, may_jump: jax.Array) -> jax.Array:
            return jnp.where(may_jump[:, :, None, None].astype(bool) | ~jumps, logits, -jnp.inf)

        may_jump = jnp.broadcast_to(jnp.asarray(may_jump), encoded.shape[:2])
        if not chunked_joint:
            logits = left(self.joint(encoded[:, :, None], predicted[:, None]), may_jump)
            return criterion(logits, batch.labels, lengths, batch.label_lengths)
        graph, params = nnx.split(self.output)

        def joint(params: Any, frames: jax.Array, predicted: jax.Array) -> jax.Array:
            encoded, may_jump = frames[..., :-1], frames[..., -1]
            hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
            return left(nnx.merge(graph, params)(hidden), may_jump)

        # What belongs to a frame comes to the joint beside what was heard in it.
        frames = jnp.concatenate([encoded, may_jump[..., None].astype(encoded.dtype)], axis=-1)
        operands = frames, predicted, batch.labels, lengths, batch.label_lengths
        return criterion.joint_loss(joint, params, *operands)

    def decode(self, batch: Batch, max_duration: int | None = None) -> GreedyDecoding:
        """Recognises the utterances (no label is looked at), taking the best class at each node."""
        return self.search(*self.encoder(batch), max_duration)

    def search(
        self, encoded: jax.Array, lengths: jax.Array, max_duration: int | None = None
    ) -> GreedyDecoding:
        """What `decode` does with encoded utterances."""
        return greedy_decode(
            *(self.transducer, self.joint, self.prediction.step, encoded, lengths),
            initial_state=self.prediction.initial_state(len(encoded)),
            max_symbols_per_frame=_MOST_SYMBOLS,
            max_labels=encoded.shape[1],  # Nobody says more than a label a frame.
            max_duration=max_duration,
        )

    def decode_with_beam(self, batch: Batch, beam: int, **fusion: Any) -> BeamDecoding:
        """Recognises the utterances as the most probable labels over all alignments.

        `fusion`: the arguments of `jax_mbrnnt.beam_decode` for a language model.
        """
        return self.search_with_beam(*self.encoder(batch), beam, **fusion)

    def search_with_beam(
        self, encoded: jax.Array, lengths: jax.Array, beam: int, **fusion: Any
    ) -> BeamDecoding:
        """What `decode_with_beam` does with encoded utterances."""
        return beam_decode(
            *(self.transducer, self.joint, self.prediction.step, encoded, lengths),
            initial_state=self.prediction.initial_state(len(encoded)),
            beam=beam,
            **fusion,
        )

    def stream(self) -> GreedyStream:
        """Returns what recognises one speaker, chunk by chunk of encoded frames."""
        return GreedyStream(
            self.transducer,
            self.joint,
            self.prediction.step,
            initial_state=self.prediction.initial_state(1),
            max_symbols_per_frame=_MOST_SYMBOLS,
        )
