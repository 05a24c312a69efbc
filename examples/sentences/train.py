"""Trains a Conformer transducer on a corpus in LibriSpeech's layout."""

import dataclasses
import json
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import tensorboardX
import tyro
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sentences.config import Config, ConfigError, read_config, write_config
from sentences.corpus import CorpusError, Sentence, read_split
from sentences.data import batches_an_epoch, examples, make_buckets
from sentences.evaluation import errors_of, recognise_and_score, texts
from sentences.pieces import Pieces, read_pieces, train_pieces
from sentences.training import Step, train
from speech import devices, progress
from speech.recogniser import Recogniser

console = Console()

_EVALUATED_AT_ONCE = 8
_DEVELOPMENT_BUCKETS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(devices.Options):
    """Trains a Conformer transducer on a corpus in LibriSpeech's layout."""

    data: pathlib.Path
    """The corpus: SPLIT/**/*.flac and *.trans.txt."""
    config: str = "conformer_tdt.yaml"
    """Which transducer: a file, or one of configs/: conformer_rnnt, _multiblank or _tdt."""
    size: str = "tiny"
    """How large, and for how long: a file, or one of configs/: tiny, small or large."""
    train: tuple[str, ...] = ("train-clean-100",)
    """Splits to train on."""
    dev: str = "dev-clean"
    """Split to test on while training."""
    steps: int | None = None
    """Training steps, instead of the size's."""
    stop_at: int | None = None
    """Stop when so many steps are done, whatever the schedule; go on with --resume."""
    seed: int = 0
    """Of parameters, batches, augmentation and dropout."""
    output: pathlib.Path = pathlib.Path("sentences_output")
    """Directory for pieces, configuration, checkpoints, TensorBoard's files and dev.jsonl."""
    resume: bool = False
    """Go on from the last checkpoint in the output directory instead of starting anew."""


def main(options: Options) -> None:
    """Reads the corpus, trains, and tests on the development split as it does."""
    config = read_config(options.size, options.config)
    if options.steps is not None:
        training = dataclasses.replace(config.training, steps=options.steps)
        config = dataclasses.replace(config, training=training)
    mesh = options.mesh()
    console.quiet = not devices.is_first_process()
    sentences = read_corpus(options.data, options.train, config)
    development = read_corpus(options.data, (options.dev,), config)
    pieces = open_output(options, config, sentences)

    short = [s for s in sentences if s.seconds <= config.training.longest_seconds]
    chosen, left_out = examples(short, pieces, config)
    report_left_out(len(sentences) - len(short), left_out)
    buckets = make_buckets(chosen, config.training.buckets, min(config.training.speeds) / 100)
    epoch = batches_an_epoch(buckets, config, mesh.size)
    console.print(
        f"{len(chosen)} sentences to train on, {_hours(sentences)}, an epoch is {epoch:.0f} steps; "
        f"{len(development)} to test on, {_hours(development)}; {len(pieces)} pieces; "
        f"{mesh.size} devices"
    )
    own = development[jax.process_index() :: jax.process_count()]
    evaluation = Evaluation(options, config, pieces, own)
    with Progress(*progress.COLUMNS, console=console) as bar:
        task = bar.add_task(config.transducer.kind, total=config.training.steps, loss=np.nan)

        def on_step(step: int, measured: Step) -> None:
            bar.update(task, completed=step, loss=measured.loss)
            evaluation.note(step, measured)

        train(
            *(config, len(pieces), buckets, options.seed, options.output.resolve() / "checkpoints"),
            *(mesh, on_step, evaluation, options.stop_at),
        )


class Evaluation:
    """Tests the development split, and keeps what is measured."""

    def __init__(
        self, options: Options, config: Config, pieces: Pieces, development: list[Sentence]
    ):
        self._config, self._pieces, self._output = config, pieces, options.output
        found, left_out = examples(development, pieces, config)
        self._buckets = make_buckets(found, _DEVELOPMENT_BUCKETS)
        self._lost_words = sum(len(sentence.text.split()) for sentence in left_out)
        self._writer = (
            tensorboardX.SummaryWriter(str(options.output / "tensorboard"))
            if devices.is_first_process()
            else None
        )
        self._losses: list[float] = []
        self._start = time.perf_counter()

    def note(self, step: int, measured: Step) -> None:
        """Keeps what a step measured."""
        self._losses.append(measured.loss)
        if self._writer is not None:
            for name, value in measured._asdict().items():
                self._writer.add_scalar(f"train/{name}", value, step)

    def __call__(self, step: int, recogniser: Recogniser) -> None:
        """Measures loss and word error rate; of all processes together."""
        found, losses = recognise_and_score(
            recogniser, self._buckets, self._config, _EVALUATED_AT_ONCE
        )
        errors = errors_of(found, self._pieces)
        labels = sum(len(x.example.labels) for x in found)
        sums = np.array(
            # What is left out is not recognised: every word of it is wrong.
            [
                *(errors.total.sum() + self._lost_words, errors.words.sum() + self._lost_words),
                *(losses.sum(), labels),
                *(sum(x.joint_evaluations for x in found), sum(x.num_frames for x in found)),
            ]
        )
        sums = np.reshape(multihost_utils.process_allgather(sums), (-1, len(sums))).sum(axis=0)
        wrong, words, loss, labels, nodes, frames = map(float, sums)
        row = {
            "step": step,
            "train_loss": float(np.mean(self._losses)) if self._losses else None,
            "loss": loss / labels,
            "word_error_rate": wrong / words,
            "nodes_a_frame": nodes / frames,
            "seconds": time.perf_counter() - self._start,
        }
        self._losses = []
        if self._writer is None:
            return
        for name in ("loss", "word_error_rate", "nodes_a_frame"):
            self._writer.add_scalar(f"dev/{name}", row[name], step)
        self._writer.flush()
        with (self._output / "dev.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        said, heard = (column[0] for column in texts(found[:1], self._pieces))
        console.print(
            f"step {step}: loss {row['loss']:.3f}, word error rate {row['word_error_rate']:.1%}\n"
            f"  said:  {said}\n  heard: {heard}",
            highlight=False,
            markup=False,
        )


def read_corpus(data: pathlib.Path, splits: tuple[str, ...], config: Config) -> list[Sentence]:
    """Reads some splits."""
    with console.status(f"Reading {', '.join(splits)}"):
        rate = config.audio.sample_rate
        return [sentence for split in splits for sentence in read_split(data, split, rate)]


def report_left_out(too_long: int, left_out: list[Sentence]) -> None:
    """Says how many recordings are too long, and which transcripts longer than the frames allow."""
    if too_long:
        console.print(f"Left out {too_long} sentences that are longer than longest_seconds")
    if left_out:
        console.print(
            f"[bold yellow]Left out {len(left_out)} sentences whose transcripts have more pieces "
            "than the encoder frames, or none:"
        )
        for sentence in left_out[:10]:
            console.print(f"  {sentence.path} ({sentence.seconds:.2f} s)", markup=False)


def open_output(options: Options, config: Config, sentences: list[Sentence]) -> Pieces:
    """Makes the output directory, or makes sure that what is in there is meant; returns the pieces.

    Raises:
      SystemExit: it is to be resumed, but was made with another configuration.
    """
    output, settings = options.output, options.output / "config.yaml"
    fits = not settings.is_file() or read_config(settings) == config
    if options.resume and not fits:
        sys.exit(f"--resume: {settings} is of another configuration")
    devices.wait_for_all("settings read")
    if devices.is_first_process():
        if settings.is_file() and not options.resume:  # Else it is not ours to delete.
            shutil.rmtree(output)
        output.mkdir(parents=True, exist_ok=True)
        model = output / "pieces.model"
        if not model.is_file():
            with console.status("Training pieces"):
                model.write_bytes(train_pieces((s.text for s in sentences), config.pieces))
            pieces = read_pieces(model)
            lines = [" ".join(pieces.split(sentence.text)) for sentence in sentences]
            (output / "pieces.txt").write_text("".join(f"{line}\n" for line in lines))
        write_config(config, settings)
    devices.wait_for_all("settings written")
    return read_pieces(output / "pieces.model")


def _hours(sentences: list[Sentence]) -> str:
    return f"{sum(sentence.seconds for sentence in sentences) / 3600:.2f} h"


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
    except (CorpusError, ConfigError) as error:
        sys.exit(str(error))
