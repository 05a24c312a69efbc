"""What a greedy search finds, and what it costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class GreedyDecoding(NamedTuple):
    """What `greedy_decode` found; of one utterance without a batch, all of it without `B`.

    Attributes:
      labels: `[B, max_labels]` int32, the label classes; -1 from `label_lengths` on.
      label_lengths: `[B]` int32, how many labels were emitted.
      frames: `[B, max_labels]` int32, the frame at which each label was emitted; -1 as in `labels`.
      durations: `[B, max_labels]` int32, the frames that each label was said to take, 0 where they
        take none; -1 as in `labels`.
      log_probs: `[B]` float32, the sum of the log-probabilities of the arcs taken, without any
        logit under-normalisation. NaN if a NaN or a +inf was among the logits on the way, or if the
        utterance's length was out of range.
      joint_evaluations: `[B]` int32, at how many nodes of its lattice the utterance needed the
        joint.
      label_log_probs: `[B, max_labels]` float32, the log-probability in nats of the arc that
        emitted each label, of both heads if there are two; 0 from `label_lengths` on.
      joint_rows: `[B]` int32, how many rows of logits were computed for the utterance, those that
        it did not need among them: of a window that it left early, or while it waited for others.
      prediction_steps: `[B]` int32, how often the prediction network was evaluated for it, needed
        or not; the start label's is one of them.
    """

    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array
    durations: jax.Array
    log_probs: jax.Array
    joint_evaluations: jax.Array
    label_log_probs: jax.Array
    joint_rows: jax.Array
    prediction_steps: jax.Array

    def tolist(self) -> list[Any]:
        """The labels alone, without padding: a list of ints for each utterance, on the host."""
        labels, lengths = np.asarray(self.labels), np.asarray(self.label_lengths)

        def of(labels: np.ndarray, lengths: np.ndarray) -> list[Any]:
            if lengths.ndim == 0:
                return labels[: int(lengths)].tolist()
            return [of(*utterance) for utterance in zip(labels, lengths, strict=True)]

        return of(labels, lengths)


def nothing_found(zeros: jax.Array, log_probs: jax.Array, max_labels: int) -> GreedyDecoding:
    """What a search begins with; `zeros` is `[B]` int32."""
    none = jnp.broadcast_to(zeros[:, None], (*zeros.shape, max_labels))
    return GreedyDecoding(
        labels=none - 1,
        label_lengths=zeros,
        frames=none - 1,
        durations=none - 1,
        log_probs=log_probs,
        joint_evaluations=zeros,
        label_log_probs=none.astype(jnp.float32),
        joint_rows=zeros,
        prediction_steps=zeros,
    )
