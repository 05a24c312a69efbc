"""Arc log-probabilities of the example's recognisers, before and after training.

For `exact_chunks`: DIR/MODEL-untrained.npz and DIR/MODEL-trained.npz, of utterances that were not
trained on. Needs what examples/spoken_words/ needs.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np
from flax import nnx

from .apart import ROOT
from .results import Report

sys.path.insert(0, str(ROOT / "examples"))

from speech import devices
from speech.batches import Batch
from spoken_words.features import make_bucket, make_buckets
from spoken_words.model import Recogniser
from spoken_words.recipe import FULL, QUICK
from spoken_words.recordings import DEBIAN_DIRECTORY, choose_recordings
from spoken_words.training import train
from spoken_words.utterances import make_sets

SEED = 0
UTTERANCES = 8


@nnx.jit
def arc_log_probs(recogniser: Recogniser, batch: Batch):
    """`[B, T, U + 1, A]` as the loss of a train step has them, and the lengths `[B]` in T."""
    logits, lengths = recogniser(batch)
    operands = logits, batch.labels, lengths, batch.label_lengths
    return recogniser.transducer.arc_log_probs(*operands), lengths


def write(path: pathlib.Path, recogniser: Recogniser, batch: Batch) -> None:
    weights, lengths = map(np.asarray, arc_log_probs(recogniser, batch))
    np.savez_compressed(
        path,
        arc_log_probs=weights,
        arcs=np.asarray(recogniser.transducer.arcs, np.int32),
        logit_lengths=lengths,
        label_lengths=batch.label_lengths,
    )
    print(path, weights.shape, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--recordings", type=pathlib.Path, default=DEBIAN_DIRECTORY)


def run(report: Report, arguments: argparse.Namespace) -> None:
    report.directory = directory = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)

    mesh = devices.make_mesh(1, None, None, None)  # before anything starts the backend
    recipe = QUICK if arguments.quick else FULL
    source = arguments.recordings, arguments.synthetic
    recordings = choose_recordings(*source, recipe.vocabulary)
    training_set, test_set = make_sets(SEED, recordings, recipe)
    buckets, unseen = make_buckets(training_set, recipe.buckets), make_bucket(test_set[:UTTERANCES])
    for name, transducer in recipe.transducers.items():
        name = name.lower().replace("-", "")
        untrained = Recogniser(recipe, transducer, rngs=nnx.Rngs(SEED))
        write(directory / f"{name}-untrained.npz", untrained, unseen.whole())
        with tempfile.TemporaryDirectory() as checkpoints:
            trained, losses = train(
                recipe,
                transducer,
                buckets,
                SEED,
                pathlib.Path(checkpoints),
                mesh,
                lambda step, loss: None,
            )
        report.say(f"{name}: {losses[0]:.2f} -> {losses[-1]:.3f} nats a character")
        write(directory / f"{name}-trained.npz", trained, unseen.whole())
