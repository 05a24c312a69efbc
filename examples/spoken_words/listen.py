"""Hears a WAV file piece by piece, as from a microphone, and prints the words as they come."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import tyro
from flax import nnx
from rich.console import Console
from scipy import signal

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jax_mbrnnt import GreedyDecoding, StreamCarry
from speech.log_mel import LogMel
from spoken_words.features import FILTERS, normalised, to_text
from spoken_words.model import ENCODER_FRAME_SECONDS, SUBSAMPLING, Recogniser
from spoken_words.recipe import FULL, QUICK
from spoken_words.recordings import SAMPLE_RATE
from spoken_words.training import load


@dataclasses.dataclass(frozen=True)
class Options:
    """Hears a WAV file piece by piece and prints the words as they come.

    A recogniser of `train.py` listens: train it first.
    """

    wav: tyro.conf.Positional[pathlib.Path]
    """What to listen to; `train.py` leaves `unseen.wav` in its output directory."""
    recogniser: Literal["RNN-T", "multi-blank", "TDT"] = "TDT"
    """Which of them listens."""
    quick: bool = False
    """It was trained with `--quick`."""
    output: pathlib.Path = pathlib.Path("spoken_words_output")
    """The output directory of the training, with the checkpoints."""
    piece_seconds: float = 0.4
    """How much is heard at a time."""


def main(options: Options) -> None:
    """Restores the recogniser and listens."""
    recipe = QUICK if options.quick else FULL
    directory = options.output.resolve() / "checkpoints" / options.recogniser
    recogniser = load(recipe, recipe.transducers[options.recogniser], directory)
    listener = Listener(recogniser, max(1, round(options.piece_seconds / ENCODER_FRAME_SECONDS)))
    console = Console()
    console.print("    heard    said at  word", style="bold")
    seconds, spent = 0.0, 0.0
    for samples, is_last in read_pieces(options.wav, options.piece_seconds):
        seconds += len(samples) / SAMPLE_RATE
        start = time.perf_counter()
        words = listener.hear(samples, is_last=is_last)
        spent += time.perf_counter() - start
        for word, second in words:
            console.print(f"{seconds:7.2f} s  {second:7.2f} s  {word}")
    console.print(f"{seconds:.2f} s of speech, {spent:.2f} s of work, compilation included")


def read_pieces(path: pathlib.Path, seconds: float) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields the samples of a file, so many seconds at a time, and whether they are the last."""
    with soundfile.SoundFile(path) as file:
        size = max(1, round(seconds * file.samplerate))
        while True:
            piece = file.read(size, dtype="float32", always_2d=True).mean(axis=1)
            if file.samplerate != SAMPLE_RATE:
                piece = signal.resample_poly(piece, SAMPLE_RATE, file.samplerate)
            is_last = file.tell() >= file.frames
            yield piece.astype(np.float32), is_last
            if is_last:
                return


class Listener:
    """A recogniser and all that it has to remember between two pieces.

    The encoder looks in both directions, so a chunk of frames is encoded together with what it
    hears before and behind it, as far as it reaches, and waits until all of that is here. (An
    encoder that looks back alone would keep its state instead, beside the decoder's.)
    """

    def __init__(self, recogniser: Recogniser, chunk_frames: int):
        self._recogniser = recogniser
        self._chunk = chunk_frames
        self._features = LogMel(FILTERS)
        self._heard = np.empty((0, FILTERS.bands), np.float32)
        self._carry = recogniser.stream().init(1)
        self._done = 0  # frames
        self._word: list[tuple[int, int]] = []  # labels of the word that is not over, and frames

    def hear(self, samples: np.ndarray, *, is_last: bool) -> list[tuple[str, float]]:
        """Takes the next samples; returns the words that are over now, and when each began."""
        heard = self._features.hear(samples, is_last=is_last)
        self._heard = np.concatenate([self._heard, heard])
        features = normalised(self._heard)  # what was heard first, too: anew each time
        there, reach = len(features) // SUBSAMPLING, self._recogniser.encoder.reach
        ready = there if is_last else there - reach
        words = []
        while self._done < ready and (is_last or self._done + self._chunk <= ready):
            length = min(self._chunk, there - self._done)
            window = window_of(features, self._done - reach, self._chunk + 2 * reach)
            found, self._carry = recognise(
                self._recogniser, self._carry, *window, np.array([length], np.int32)
            )
            self._done += length
            count = int(found.label_lengths[0])
            labels, at = np.asarray(found.labels[0]), np.asarray(found.frames[0])
            for label, frame in zip(labels[:count], at[:count], strict=True):
                if to_text([label]) == " ":
                    words += self._end_word()
                else:
                    self._word.append((label, frame))
        return words + (self._end_word() if is_last else [])

    def _end_word(self) -> list[tuple[str, float]]:
        labels, self._word = self._word, []
        if not labels:
            return []
        text = to_text([label for label, _ in labels])
        return [(text, float(labels[0][1]) * ENCODER_FRAME_SECONDS)]


def window_of(features: np.ndarray, begin: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """So many frames of an utterance, `[1, 4 size, bands]`, and which of them there are."""
    there = len(features) // SUBSAMPLING
    frames = np.arange(begin, begin + size)
    is_valid = (frames >= 0) & (frames < there)
    window = np.zeros((size, SUBSAMPLING * FILTERS.bands), np.float32)
    window[is_valid] = features[: there * SUBSAMPLING].reshape(there, -1)[frames[is_valid]]
    return window.reshape(1, -1, FILTERS.bands), is_valid[None]


@nnx.jit
def recognise(
    recogniser: Recogniser,
    carry: StreamCarry,
    features: jax.Array,
    is_valid: jax.Array,
    chunk_lengths: jax.Array,
) -> tuple[GreedyDecoding, StreamCarry]:
    """The chunk in the middle of a window that reaches beyond it on both sides."""
    reach = recogniser.encoder.reach
    encoded = recogniser.encoder.encode(features, is_valid)[:, reach:-reach]
    return recogniser.stream().step(carry, encoded, jnp.asarray(chunk_lengths))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
    except FileNotFoundError as error:
        sys.exit(str(error))
