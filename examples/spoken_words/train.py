"""Trains an RNN-Transducer, a multi-blank one and a TDT on spoken words and compares them."""

import dataclasses
import pathlib
import shutil
import statistics
import sys
import time
from typing import Literal

import numpy as np
import soundfile
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jax_mbrnnt import Transducer
from speech import devices, progress
from spoken_words import report
from spoken_words.evaluation import arc_posteriors, evaluate
from spoken_words.features import Bucket, features_of, make_bucket, make_buckets
from spoken_words.model import Recogniser
from spoken_words.recipe import FULL, QUICK, Recipe
from spoken_words.recordings import (
    DEBIAN_DIRECTORY,
    SAMPLE_RATE,
    RecordingsNotFoundError,
    choose_recordings,
)
from spoken_words.training import train
from spoken_words.utterances import make_sets

console = Console()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(devices.Options):
    """Trains an RNN-Transducer, a multi-blank one and a TDT on spoken words and compares them."""

    recordings: pathlib.Path = DEBIAN_DIRECTORY
    """Directory of the recorded prompts (digits/*.wav, phonetic/*.wav)."""
    synthetic: bool = False
    """Use made-up words of tones instead of recordings. This is not speech."""
    quick: bool = False
    """A smaller task and smaller recognisers: done within two minutes."""
    only: Literal["RNN-T", "multi-blank", "TDT"] | None = None
    """Train and test this recogniser alone."""
    steps: int | None = None
    """Training steps of each recogniser, instead of the recipe's."""
    seed: int = 0
    """Of the utterances, parameters, batches and noise."""
    output: pathlib.Path = pathlib.Path("spoken_words_output")
    """Directory for pictures, results.json and checkpoints."""
    all_logits: bool = False
    """Hand the loss all logits, not the joint network: the same training in more memory."""
    resume: bool = False
    """Go on from the checkpoints in the output directory instead of starting anew."""


def main(options: Options) -> None:
    """Makes the utterances, trains and tests the recognisers, and reports."""
    start = time.perf_counter()
    recipe = QUICK if options.quick else FULL
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    output = options.output.resolve()
    mesh = choose_devices(options, recipe)
    console.quiet = not devices.is_first_process()
    if options.synthetic:
        console.print(
            "[bold yellow]Synthetic: the words are made up and consist of tones. Nothing below "
            "says anything about speech."
        )
    recordings = choose_recordings(options.recordings, options.synthetic, recipe.vocabulary)
    open_checkpoints(output / "checkpoints", options, recipe)

    training_set, test_set = make_sets(options.seed, recordings, recipe)
    console.print(
        f"{len(recordings)} words; {len(training_set)} utterances to train on, {len(test_set)} "
        f"to test with, {statistics.mean(u.seconds for u in training_set):.1f} s long on average"
    )
    with console.status("Log-mel features"):
        training_buckets = make_buckets(training_set, recipe.buckets)
        test_bucket = make_bucket(test_set)

    transducers = recipe.transducers
    if options.only:
        transducers = {options.only: transducers[options.only]}
    recognisers, losses, evaluations = {}, {}, {}
    for name, transducer in transducers.items():
        recognisers[name], losses[name] = train_with_progress_bar(
            name, recipe, transducer, training_buckets, options, output / "checkpoints", mesh
        )
        with console.status(f"Testing {name}"):
            evaluations[name] = evaluate(recognisers[name], test_bucket, recipe.batch_size)

    if not devices.is_first_process():
        return
    report.print_tables(console, evaluations)
    report.print_samples(console, evaluations)
    report.plot_losses(output / "losses.png", losses)
    shown = sorted(test_set, key=lambda utterance: utterance.seconds)[len(test_set) // 3]
    report.plot_lattices(
        output / "lattices.png",
        shown.text,
        features_of(shown.waveform),
        {
            name: np.asarray(arc_posteriors(recogniser, make_bucket([shown]).whole()))[0]
            for name, recogniser in recognisers.items()
        },
        {name: transducer.arcs for name, transducer in transducers.items()},
    )
    soundfile.write(output / "unseen.wav", shown.waveform, SAMPLE_RATE)  # for listen.py
    seconds = time.perf_counter() - start
    report.write_json(output / "results.json", seconds, recipe, losses, evaluations)
    console.print(f"{seconds:.0f} s in all. Pictures and results are in {output}")


def choose_devices(options: Options, recipe: Recipe) -> Mesh:
    """Returns the devices to train on.

    Raises:
      SystemExit: they are not there, or cannot share the batch evenly.
    """
    mesh = options.mesh()
    if recipe.batch_size % mesh.size:
        sys.exit(
            f"--devices: expected a divisor of the batch's {recipe.batch_size} utterances, got "
            f"{mesh.size} devices in all"
        )
    return mesh


def train_with_progress_bar(
    name: str,
    recipe: Recipe,
    transducer: Transducer,
    buckets: list[Bucket],
    options: Options,
    checkpoints: pathlib.Path,
    mesh: Mesh,
) -> tuple[Recogniser, list[float]]:
    """Trains a recogniser and shows how far it has come."""
    with Progress(*progress.COLUMNS, console=console) as bar:
        task = bar.add_task(name, total=recipe.steps, loss=float("nan"))

        def show(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=loss)

        directory = checkpoints / name
        return train(
            recipe, transducer, buckets, options.seed, directory, mesh, show, not options.all_logits
        )


def open_checkpoints(directory: pathlib.Path, options: Options, recipe: Recipe) -> None:
    """Makes sure that checkpoints found in `directory` are meant to be there and fit.

    Raises:
      SystemExit: they are to be resumed, but belong to other recognisers or other data.
    """
    fixed = {
        "recipe": dataclasses.replace(recipe, steps=0),  # A run may be made longer.
        "seed": options.seed,
        "recordings": "synthetic" if options.synthetic else str(options.recordings),
    }
    settings = repr(fixed)
    record = directory / "settings.txt"
    if options.resume and record.is_file() and record.read_text() != settings:
        sys.exit(f"--resume: {directory} was made with other settings:\n{record.read_text()}")
    devices.wait_for_all("settings read")
    if devices.is_first_process():
        if not options.resume and record.is_file():  # Else it is not ours to delete.
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        record.write_text(settings)
    devices.wait_for_all("settings written")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
    except RecordingsNotFoundError as error:
        sys.exit(str(error))
