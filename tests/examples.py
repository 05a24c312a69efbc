"""The examples as the tests use them: modules, programs, and a small corpus of tones."""

import importlib
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
RATE = 8000
SIZE = """
pieces: 30
audio: {sample_rate: 8000, bands: 40, low: 60.0, high: 3900.0}
encoder: {width: 64, layers: 2, heads: 2, kernel: 7, channels: 8, halvings: 2, dropout: 0.05,
          dtype: float32, remat: false, chunk: 8, left_chunks: 2}
prediction: {kind: stateless, size: 2}
joint: 48
training: {steps: 300, frames_per_batch: 4800, buckets: 2, workers: 0, warmup_steps: 40,
           peak_learning_rate: 5.0e-3, weight_decay: 1.0e-3, average_decay: 0.98,
           evaluate_every: 150, speeds: [100],
           augment: {band_masks: 1, most_bands: 5, time_masks: 0}}
"""


def example(name: str) -> Any:
    """A module of the examples, in a test that uses `as_the_examples_run`."""
    return importlib.import_module(name)


def run_example(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`spoken_words/train.py`, say."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def write_corpus(directory: pathlib.Path, split: str, texts_and_sounds: list[Any]) -> None:
    import soundfile  # an extra: see the tests that need it

    folder = directory / split / "7" / "1"
    folder.mkdir(parents=True)
    lines = []
    for i, (text, sound) in enumerate(texts_and_sounds):
        soundfile.write(folder / f"7-1-{i:04}.flac", sound, RATE)
        lines.append(f"7-1-{i:04} {text}\n")
    (folder / "7-1.trans.txt").write_text("".join(lines))


def write_sentences(directory: pathlib.Path) -> None:
    """Writes a corpus of sentences of the other example's made-up words, and a size for it."""
    words = example("spoken_words.recordings").make_synthetic_recordings()
    some = dict(list(words.items())[:6])
    rng = np.random.default_rng(0)
    make = example("spoken_words.utterances").make_utterances
    training = make(rng, some, 160, (1, 3))
    development = make(rng, some, 12, (2, 3))
    for split, utterances in (("train", training), ("dev", development)):
        write_corpus(directory, split, [(u.text.upper(), u.waveform) for u in utterances])
    (directory / "size.yaml").write_text(SIZE)
