"""Training: one compiled step, batches that depend on the step alone, checkpoints."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jax_mbrnnt import Transducer
from speech import checkpoints, devices
from speech.batches import Batch
from speech.optimizer import make_optimizer
from speech.steps import Steps
from spoken_words.features import Bucket, random_batch
from spoken_words.model import SUBSAMPLING, Recogniser
from spoken_words.recipe import Recipe


def train(
    recipe: Recipe,
    transducer: Transducer,
    buckets: Sequence[Bucket],
    seed: int,
    directory: pathlib.Path,
    mesh: Mesh,
    on_step: Callable[[int, float], None],
    chunked_joint: bool = True,
) -> tuple[Recogniser, list[float]]:
    """Trains a recogniser, from the last checkpoint on if there is one.

    Step `i` sees the same batch and the same noise whether or not the training was interrupted
    before, and on however many devices: both are derived from the seed and from `i`.

    Args:
      recipe: sizes and schedule.
      transducer: the loss, and with it the kind of the recogniser.
      buckets: the training utterances.
      seed: of the parameters, batches and noise.
      directory: absolute path of that for the checkpoints.
      mesh: the devices that share the utterances of a batch.
      on_step: called with the number of steps done and the loss after each step.
      chunked_joint: whether the loss makes the logits a chunk of frames at a time, and keeps none.

    Returns:
      The recogniser, on one device, and the loss of every step, in nats a character.
    """
    recogniser, optimizer = _make(recipe, transducer, seed)
    devices.replicate(mesh, recogniser, optimizer)
    losses: list[float] = []

    with ocp.CheckpointManager(directory, options=checkpoints.OPTIONS) as manager:
        last_step = manager.latest_step()
        if last_step is not None:
            modules = recogniser, optimizer
            others = checkpoints.restore(manager, last_step, modules, losses=ocp.args.JsonRestore())
            losses = others.losses
            on_step(last_step, losses[-1])

        def note(loss: jax.Array) -> None:
            losses.append(float(loss))
            on_step(len(losses), losses[-1])

        steps = Steps(note)
        for step in range(len(losses), recipe.steps):
            rng = np.random.default_rng((seed, step))
            batch = random_batch(rng, buckets, recipe.batch_size, recipe.augmentation)
            may_jump = draw_jumps(rng, recipe, transducer, batch)
            own = devices.spread(mesh, devices.own_part(batch))
            share = recipe.sigma_share(step)
            steps.started(train_step(recogniser, optimizer, own, share, may_jump, chunked_joint))
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
                steps.wait()
                others = {"losses": ocp.args.JsonSave(losses)}
                checkpoints.save(manager, step + 1, (recogniser, optimizer), **others)
    devices.take_home(recogniser)
    return recogniser, losses


def draw_jumps(
    rng: np.random.Generator, recipe: Recipe, transducer: Transducer, batch: Batch
) -> np.ndarray:
    """Draws where in the frames `[B, T]` of the encoder the transducer may jump in this step."""
    size, frames = len(batch.features), batch.features.shape[1] // SUBSAMPLING
    in_utterance = rng.random((size, 1)) >= recipe.omega_of(transducer)
    return in_utterance & (rng.random((size, frames)) >= recipe.held_of(transducer))


def load(recipe: Recipe, transducer: Transducer, directory: pathlib.Path) -> Recogniser:
    """Returns the recogniser of the last checkpoint.

    Raises:
      FileNotFoundError: there is none.
    """
    recogniser, optimizer = _make(recipe, transducer, seed=0)
    checkpoints.restore_last(directory, (recogniser, optimizer))
    return recogniser


def _make(
    recipe: Recipe, transducer: Transducer, seed: int
) -> tuple[Recogniser, nnx.Optimizer[Recogniser]]:
    recogniser = Recogniser(recipe, transducer, rngs=nnx.Rngs(seed))
    optimizer = make_optimizer(
        *(recipe.steps, recipe.warmup_steps, recipe.peak_learning_rate),
        *(recipe.weight_decay, recipe.max_gradient_norm),
    )
    return recogniser, nnx.Optimizer(recogniser, optimizer, wrt=nnx.Param)


@functools.partial(nnx.jit, static_argnames="chunked_joint")
def train_step(
    recogniser: Recogniser,
    optimizer: nnx.Optimizer[Recogniser],
    batch: Batch,
    sigma_share: ArrayLike,
    may_jump: ArrayLike,
    chunked_joint: bool,
) -> jax.Array:
    """Updates the recogniser and returns the loss, in nats a character."""

    def loss_per_label(recogniser: Recogniser) -> jax.Array:
        losses = recogniser.losses(
            batch, sigma_share=sigma_share, may_jump=may_jump, chunked_joint=chunked_joint
        )
        return losses.sum() / batch.label_lengths.sum()

    loss, gradients = nnx.value_and_grad(loss_per_label)(recogniser)
    optimizer.update(recogniser, gradients)
    return loss
