"""A corpus in LibriSpeech's layout: `SPLIT/**/*.trans.txt`, and a FLAC file beside for each line.

A line of a transcript file is the name of its FLAC file and what is said in it.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import soundfile

_SHOWN = 10


class CorpusError(ValueError):
    """Files that are missing, or not what they should be; the message names them."""


class Sentence(NamedTuple):
    """A recording of a sentence.

    Attributes:
      name: of the file, without its ending.
      path: of the file.
      text: what is said.
      seconds: how long it is.
    """

    name: str
    path: pathlib.Path
    text: str
    seconds: float


def read_split(directory: pathlib.Path, split: str, sample_rate: int) -> list[Sentence]:
    """Reads what there is in a split, in the order of the names; of audio the headers alone.

    Args:
      directory: the corpus.
      split: a folder in it, as `train-clean-100`.
      sample_rate: that every recording has to have, in Hz.

    Raises:
      CorpusError: there is nothing; or recordings without a transcript, or the other way round, an
        empty transcript, or recordings that are empty, unreadable, stereo or of another rate.
    """
    root = directory / split
    if not root.is_dir():
        found = sorted(p.name for p in directory.glob("*") if p.is_dir())
        raise CorpusError(f"{root}: expected a folder, {directory} has {found}")
    texts: dict[pathlib.Path, str] = {}
    faults: list[str] = []
    for transcripts in sorted(root.rglob("*.trans.txt")):
        for name, text in _lines(transcripts):
            path = transcripts.with_name(f"{name}.flac")
            texts[path] = text
            if not path.is_file():
                faults.append(f"{path}: is not there, but {transcripts} has a line for it")
            elif not text:
                faults.append(f"{path}: its line in {transcripts} is empty")
    for path in sorted(set(root.rglob("*.flac")) - set(texts)):
        faults.append(f"{path}: has no line in a *.trans.txt beside it")
    sentences = []
    for path in sorted(texts):
        if path.is_file() and texts[path]:
            seconds = _seconds(path, sample_rate)
            if isinstance(seconds, str):
                faults.append(f"{path}: {seconds}")
            else:
                sentences.append(Sentence(path.stem, path, texts[path], seconds))
    if faults:
        more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CorpusError("\n".join(faults[:_SHOWN]) + more)
    if not sentences:
        raise CorpusError(f"{root}: expected *.trans.txt and *.flac in it, found none")
    return sentences


def _lines(transcripts: pathlib.Path) -> Iterator[tuple[str, str]]:
    for line in transcripts.read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, _, text = line.strip().partition(" ")
            yield name, " ".join(text.split())


def _seconds(path: pathlib.Path, sample_rate: int) -> float | str:
    """How long the recording is, or what is wrong with it."""
    if not path.stat().st_size:
        return "has no samples"
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        return f"cannot be read: {error.error_string}"
    if info.samplerate != sample_rate:
        return f"expected a sample rate of {sample_rate} Hz, got {info.samplerate}"
    if info.channels != 1:
        return f"expected one channel, got {info.channels}"
    if info.frames == 0:
        return "has no samples"
    return float(info.duration)
