"""What memory the loss takes on each device: as compiled programs say, nothing is run.

    python examples/sentences/memory.py --size large --seconds 15 --pieces-a-second 4

The loss with its gradients, from the encoder's frames and the prediction network's on: the joint,
its logits, the lattice. Beside it what the logits take, which a loss of whole logits keeps.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sentences.config import Config, read_config
from speech.batches import Batch
from speech.classes import scores_for
from speech.recogniser import Recogniser


@dataclasses.dataclass(frozen=True)
class Options:
    """What memory the loss takes on each device: as compiled programs say, nothing is run."""

    size: str = "large"
    """A size, as of train.py."""
    devices: int = 8
    """That share a batch."""
    seconds: float = 15.0
    """Of each utterance."""
    pieces_a_second: float = 4.0
    """That are said."""


class Given(nnx.Module):
    """In the place of an encoder and of a prediction network: what they have computed."""

    def __init__(self, *arrays: jax.Array):
        self.arrays = arrays

    def __call__(self, *_: Any) -> Any:
        return self.arrays if len(self.arrays) > 1 else self.arrays[0]


def main(options: Options) -> None:
    """Prints a table."""
    console, table = Console(), Table()
    for name in ("", "logits", "loss, whole logits", "loss, by chunks"):
        table.add_column(name, justify="right" if name else "left")
    for kind in ("rnnt", "multiblank", "tdt"):
        config = read_config(options.size, f"conformer_{kind}")
        frames = round(100 * options.seconds)
        batch = config.training.frames_per_batch // options.devices // frames
        shape = batch, frames >> config.encoder.halvings
        labels = round(options.pieces_a_second * options.seconds)
        logits, *losses = bytes_of(config, *shape, labels)
        table.add_row(kind, *(f"{size / 2**30:.2f} GiB" for size in (logits, *losses)))
    console.print(f"{batch} utterances of {options.seconds} s on each device:", highlight=False)
    console.print(
        f"[B, T, U + 1, H] = {[*shape, labels + 1, config.joint]}, {config.encoder.dtype}"
    )
    console.print(table)


def bytes_of(config: Config, batch: int, frames: int, labels: int) -> tuple[int, int, int]:
    """Returns the size of the logits, and of what the loss needs beside its operands and results.

    The latter from all logits at once, and a chunk at a time.
    """
    transducer, dtype = config.transducer.make(), jnp.dtype(config.encoder.dtype)
    scores = scores_for(transducer, config.pieces)

    def array(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    encoded = array(batch, frames, config.joint)
    predicted = array(batch, labels + 1, config.joint)
    weights = array(config.joint, scores, dtype=jnp.float32), array(scores, dtype=jnp.float32)
    texts = array(batch, labels, dtype=jnp.int32)
    lengths = array(batch, dtype=jnp.int32)

    def temporaries(chunked_joint: bool) -> int:
        def loss(encoded: Any, predicted: Any, weights: Any, texts: Any, *lengths: Any) -> Any:
            given = Given(encoded, lengths[0]), Given(predicted)
            recogniser = Recogniser(
                transducer, *given, config.joint, scores, dtype=dtype, rngs=nnx.Rngs(0)
            )
            recogniser.output.kernel[...], recogniser.output.bias[...] = weights
            batch: Any = Batch(encoded, lengths[0], texts, lengths[1])
            return recogniser.losses(batch, chunked_joint=chunked_joint).mean()

        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        compiled = program.lower(encoded, predicted, weights, texts, lengths, lengths).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    logits = batch * frames * (labels + 1) * scores * dtype.itemsize
    return logits, temporaries(False), temporaries(True)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
