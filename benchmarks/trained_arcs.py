"""What the recognisers of examples/spoken_words/ give, before and after training, for exact_chunks.

Needs what the example needs, and what its train.py wrote.
"""

import pathlib
import sys
from collections.abc import Iterator

import numpy as np
from flax import nnx

from exact_chunks import Lattices

from .apart import ROOT

sys.path.insert(0, str(ROOT / "examples"))

from speech.batches import Batch
from spoken_words.features import make_bucket
from spoken_words.model import Recogniser
from spoken_words.recipe import FULL, QUICK
from spoken_words.recordings import DEBIAN_DIRECTORY, choose_recordings
from spoken_words.training import load
from spoken_words.utterances import make_sets

SEED = 0  # train.py's, so that the utterances were not trained on
UTTERANCES = 8


@nnx.jit
def arc_log_probs(recogniser: Recogniser, batch: Batch):
    """`[B, T, U + 1, A]` as the loss of a train step has them, and the lengths `[B]` in T."""
    logits, lengths = recogniser(batch)
    operands = logits, batch.labels, lengths, batch.label_lengths
    return recogniser.transducer.arc_log_probs(*operands), lengths


def lattices(output: pathlib.Path, quick: bool) -> Iterator[tuple[str, Lattices]]:
    """Of train.py's output; `quick`: of what `train.py --quick --synthetic` wrote."""
    recipe = QUICK if quick else FULL
    recordings = choose_recordings(DEBIAN_DIRECTORY, quick, recipe.vocabulary)
    _, test_set = make_sets(SEED, recordings, recipe)
    batch = make_bucket(test_set[:UTTERANCES]).whole()
    for name, transducer in recipe.transducers.items():
        trained = load(recipe, transducer, output.resolve() / "checkpoints" / name)
        untrained = Recogniser(recipe, transducer, rngs=nnx.Rngs(SEED))
        for when, recogniser in {"untrained": untrained, "trained": trained}.items():
            weights, lengths = map(np.asarray, arc_log_probs(recogniser, batch))
            yield (
                f"{name}, {when}",
                Lattices(weights, transducer.arcs, lengths, np.asarray(batch.label_lengths)),
            )
