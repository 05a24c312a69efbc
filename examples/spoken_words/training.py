"""Training: one compiled step, batches that depend on the step alone, checkpoints."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

import devices
from features import Batch, Bucket, random_batch
from jax_mbrnnt import Transducer
from model import Recogniser
from recipe import Recipe


def train(
    recipe: Recipe,
    transducer: Transducer,
    buckets: Sequence[Bucket],
    seed: int,
    checkpoints: pathlib.Path,
    mesh: Mesh,
    on_step: Callable[[int, float], None],
    chunked_joint: bool = False,
) -> tuple[Recogniser, list[float]]:
    """Trains a recogniser, from the last checkpoint on if there is one.

    Step `i` sees the same batch and the same noise whether or not the training was interrupted
    before, and on however many devices: both are derived from the seed and from `i`.

    Args:
      recipe: sizes and schedule.
      transducer: the loss, and with it the kind of the recogniser.
      buckets: the training utterances.
      seed: of the parameters, batches and noise.
      checkpoints: absolute path of the directory for them.
      mesh: the devices that share the utterances of a batch.
      on_step: called with the number of steps done and the loss after each step.
      chunked_joint: whether the loss makes the logits a chunk of frames at a time.

    Returns:
      The recogniser, on one device, and the loss of every step, in nats a character.
    """
    recogniser, optimizer = _make(recipe, transducer, seed)
    devices.replicate(mesh, recogniser, optimizer)
    losses: list[float] = []

    with ocp.CheckpointManager(checkpoints, options=_CHECKPOINT_OPTIONS) as manager:
        last_step = manager.latest_step()
        if last_step is not None:
            losses = _restore(manager, last_step, recogniser, optimizer)
            on_step(last_step, losses[-1])
        for step in range(len(losses), recipe.steps):
            rng = np.random.default_rng((seed, step))
            batch = random_batch(rng, buckets, recipe.batch_size, recipe.feature_noise)
            batch = devices.spread(mesh, batch)
            share, has_jumps = recipe.sigma_share(step), rng.random() >= recipe.omega
            losses.append(
                float(train_step(recogniser, optimizer, batch, share, has_jumps, chunked_joint))
            )
            on_step(step + 1, losses[-1])
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
                _save(manager, step + 1, recogniser, optimizer, losses)
    devices.take_home(recogniser)
    return recogniser, losses


def load(recipe: Recipe, transducer: Transducer, checkpoints: pathlib.Path) -> Recogniser:
    """Returns the recogniser of the last checkpoint.

    Raises:
      FileNotFoundError: there is none.
    """
    recogniser, optimizer = _make(recipe, transducer, seed=0)
    if checkpoints.is_dir():
        with ocp.CheckpointManager(checkpoints, options=_CHECKPOINT_OPTIONS) as manager:
            last_step = manager.latest_step()
            if last_step is not None:
                _restore(manager, last_step, recogniser, optimizer)
                return recogniser
    raise FileNotFoundError(f"No checkpoint in {checkpoints}: train the recogniser with train.py")


def _make(
    recipe: Recipe, transducer: Transducer, seed: int
) -> tuple[Recogniser, nnx.Optimizer[Recogniser]]:
    recogniser = Recogniser(recipe, transducer, rngs=nnx.Rngs(seed))
    return recogniser, nnx.Optimizer(recogniser, _make_optimizer(recipe), wrt=nnx.Param)


@functools.partial(nnx.jit, static_argnames="chunked_joint")
def train_step(
    recogniser: Recogniser,
    optimizer: nnx.Optimizer[Recogniser],
    batch: Batch,
    sigma_share: ArrayLike,
    has_jumps: ArrayLike,
    chunked_joint: bool,
) -> jax.Array:
    """Updates the recogniser and returns the loss, in nats a character."""

    def loss_per_label(recogniser: Recogniser) -> jax.Array:
        losses = recogniser.losses(batch, sigma_share, has_jumps, chunked_joint)
        return losses.sum() / batch.label_lengths.sum()

    loss, gradients = nnx.value_and_grad(loss_per_label)(recogniser)
    optimizer.update(recogniser, gradients)
    return loss


def _make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    warmup_steps = min(recipe.warmup_steps, recipe.steps // 4)
    learning_rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=recipe.peak_learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=recipe.steps,
        end_value=0.02 * recipe.peak_learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(recipe.max_gradient_norm),
        optax.adamw(learning_rate, b2=0.98, weight_decay=recipe.weight_decay),
    )


_CHECKPOINT_OPTIONS = ocp.CheckpointManagerOptions(max_to_keep=1)


def _save(
    manager: ocp.CheckpointManager,
    step: int,
    recogniser: Recogniser,
    optimizer: nnx.Optimizer[Recogniser],
    losses: list[float],
) -> None:
    state = nnx.to_pure_dict(nnx.state((recogniser, optimizer)))
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), losses=ocp.args.JsonSave(losses)
        ),
    )


def _restore(
    manager: ocp.CheckpointManager,
    step: int,
    recogniser: Recogniser,
    optimizer: nnx.Optimizer[Recogniser],
) -> list[float]:
    """Fills the recogniser and its optimizer and returns the losses up to there."""
    state = nnx.state((recogniser, optimizer))
    saved = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(nnx.to_pure_dict(state)), losses=ocp.args.JsonRestore()
        ),
    )
    nnx.replace_by_pure_dict(state, saved.state)
    nnx.update((recogniser, optimizer), state)
    return saved.losses
