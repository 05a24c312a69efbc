"""Training: one compiled step for each bucket's shape, exact resumption."""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from sentences.config import Config
from sentences.data import Bucket, Example, read_features, training_input
from sentences.model import SentenceRecogniser, make_recogniser, set_statistics
from speech import checkpoints, devices
from speech.batches import Batch
from speech.optimizer import make_optimizer
from speech.recogniser import Recogniser
from speech.schedule import share_at
from speech.steps import Steps

_STATISTICS_FROM = 500


class Training(NamedTuple):
    """All that changes in a training, but for where it stands in its input.

    Attributes:
      recogniser: what is trained.
      average: what recognises: a moving average of its parameters.
      optimizer: of the former.
    """

    recogniser: SentenceRecogniser
    average: SentenceRecogniser
    optimizer: nnx.Optimizer[Recogniser]


class Step(NamedTuple):
    """What a step measured.

    Attributes:
      loss: in nats a piece.
      gradient_norm: before it was clipped.
    """

    loss: float
    gradient_norm: float


def make_training(config: Config, labels: int, seed: int) -> Training:
    """Returns a training that has not begun."""
    recogniser = make_recogniser(config, labels, seed)
    training = config.training
    optimizer = make_optimizer(
        *(training.steps, training.warmup_steps, training.peak_learning_rate),
        *(training.weight_decay, training.max_gradient_norm),
    )
    return Training(
        recogniser, nnx.clone(recogniser), nnx.Optimizer(recogniser, optimizer, wrt=nnx.Param)
    )


def train(
    config: Config,
    labels: int,
    buckets: Sequence[Bucket],
    seed: int,
    directory: pathlib.Path,
    mesh: Mesh,
    on_step: Callable[[int, Step], None],
    on_evaluation: Callable[[int, Recogniser], None],
    stop_at: int | None = None,
) -> None:
    """Trains a recogniser, from the last checkpoint on if there is one.

    Interrupted and resumed, it is the same to the bit as without: batches, dropout and schedules
    follow from seed and step, and a checkpoint holds where the input stands.

    Args:
      config: all numbers.
      labels: how many pieces there are.
      buckets: the utterances.
      seed: of parameters, batches, augmentation and dropout.
      directory: absolute path of that for the checkpoints.
      mesh: the devices that share the utterances of a batch.
      on_step: called with the number of steps done, and what the last one measured.
      on_evaluation: called with this number and the average, on one device, before a checkpoint.
      stop_at: a step to stop at, as if interrupted just behind it.
    """
    training = make_training(config, labels, seed)
    parts = mesh.size, jax.process_index(), jax.process_count()
    batches = iter(training_input(buckets, config, seed, *parts))
    num_steps, key = config.training.steps, jax.random.key(seed)

    with (
        contextlib.closing(batches),
        ocp.CheckpointManager(directory, options=checkpoints.OPTIONS) as manager,
    ):
        first = manager.latest_step() or 0
        if not first:  # else they are in the checkpoint
            found = statistics(buckets, config)
            for recogniser in training[:2]:
                set_statistics(recogniser, *found)
        devices.replicate(mesh, *training)
        if first:
            where = grain.checkpoint.CheckpointRestore(batches)
            checkpoints.restore(manager, first, training, input=where)
        steps = Steps(lambda measured: on_step(measured[0], Step(*map(float, measured[1]))))
        for step in range(first, num_steps if stop_at is None else min(stop_at, num_steps)):
            batch = devices.spread(mesh, next(batches))
            share = share_at(config.transducer.sigma_shares, step / num_steps)
            weights = config.training.average_decay, config.training.ctc_weight
            measured = train_step(*training, batch, step, share, key, *weights)
            steps.started((step + 1, measured))
            if (step + 1) % config.training.evaluate_every == 0 or step + 1 == num_steps:
                steps.wait()
                on_evaluation(step + 1, taken_home(training.average))
                where = grain.checkpoint.CheckpointSave(batches)
                checkpoints.save(manager, step + 1, training, input=where)
        steps.wait()  # stopped elsewhere


@nnx.jit
def train_step(
    recogniser: SentenceRecogniser,
    average: SentenceRecogniser,
    optimizer: nnx.Optimizer[Recogniser],
    batch: Batch,
    step: ArrayLike,
    sigma_share: ArrayLike,
    key: jax.Array,
    average_decay: ArrayLike,
    ctc_weight: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Updates all three; returns the transducer's loss, nats a piece, and the gradient's norm."""
    dropout = jax.random.fold_in(key, step)

    def loss_per_label(recogniser: SentenceRecogniser) -> tuple[jax.Array, jax.Array]:
        inputs = recogniser.inputs_of_joint(batch, dropout)
        encoded, _, lengths = inputs
        losses = recogniser.losses_of(inputs, batch, sigma_share=sigma_share)
        ctc = recogniser.ctc_losses(encoded, lengths, batch)
        labels = batch.label_lengths.sum()
        loss = losses.sum() / labels
        return loss + ctc_weight * ctc.sum() / labels, loss

    differentiate = nnx.value_and_grad(loss_per_label, has_aux=True)
    (_, loss), gradients = differentiate(recogniser)
    optimizer.update(recogniser, gradients)
    # At the start the average would be that of the random parameters.
    new = jnp.maximum(1 - average_decay, 9 / (10 + jnp.asarray(step)))
    states = (nnx.state(model, nnx.Param) for model in (recogniser, average))
    nnx.update(average, optax.incremental_update(*states, new))
    return loss, optax.global_norm(gradients)


def statistics(buckets: Sequence[Bucket], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation `[bands]` of the features of some utterances."""
    every: list[Example] = [example for bucket in buckets for example in bucket.examples]
    some = every[:: max(1, len(every) // _STATISTICS_FROM)]
    frames = np.concatenate([read_features(example, config) for example in some])
    return frames.mean(axis=0), frames.std(axis=0) + 1e-3


def taken_home(recogniser: Recogniser) -> Recogniser:
    """Returns a copy on the first device of this process alone."""
    copy = nnx.clone(recogniser)
    devices.take_home(copy)
    return copy


def load(config: Config, labels: int, directory: pathlib.Path) -> Recogniser:
    """Returns the average of the last checkpoint.

    Raises:
      FileNotFoundError: there is none.
    """
    training = make_training(config, labels, seed=0)
    checkpoints.restore_last(directory, training)
    return training.average
