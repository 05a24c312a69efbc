"""Converts recordings that Debian has into a corpus in LibriSpeech's layout.

`asterisk`: prompts of a telephone exchange in English, by one speaker (packages
`asterisk-core-sounds-en-wav` and `asterisk-core-sounds-en`; CC-BY-SA 3.0). `fillets`: what two fish
say in a game, in Czech (packages `fillets-ng-data-cs` and `fillets-ng-data`; GPL-2).
"""

import dataclasses
import gzip
import math
import pathlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import soundfile
import tyro
from rich.console import Console
from rich.progress import track
from scipy import signal

SAMPLE_RATE = 16000

_PACKAGES = {
    "asterisk": "asterisk-core-sounds-en-wav asterisk-core-sounds-en",
    "fillets": "fillets-ng-data-cs fillets-ng-data",
}
_ASTERISK_TEXTS = "share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_ASTERISK_SOUNDS = "share/asterisk/sounds/en_US_f_Allison"
_FILLETS = "share/games/fillets-ng"
_DIALOG = re.compile(r'dialogId\("([^"]+)", "font_([^"]+)".*?\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')
_FEWEST_WORDS = 3  # of a test sentence


@dataclasses.dataclass(frozen=True)
class Options:
    """Converts recordings that Debian has into a corpus in LibriSpeech's layout."""

    corpus: tyro.conf.Positional[Literal["asterisk", "fillets"]]
    """English prompts of a telephone exchange, or a Czech game."""
    output: tyro.conf.Positional[pathlib.Path]
    """The directory for the corpus: train, dev and test."""
    root: pathlib.Path = pathlib.Path("/usr")
    """Where the packages are, if they are not installed but unpacked elsewhere."""


class Clip(NamedTuple):
    """A recording: who speaks, the group it belongs to, and what is said."""

    path: pathlib.Path
    speaker: str
    group: str
    text: str


def main(options: Options) -> None:
    """Writes the corpus.

    Raises:
      SystemExit: the recordings are not there.
    """
    console = Console()
    clips = list({"asterisk": _asterisk, "fillets": _fillets}[options.corpus](options.root))
    if not clips:
        sys.exit(
            f"No recordings below {options.root}.\nOn Debian and Ubuntu install them with\n"
            f"    apt-get install {_PACKAGES[options.corpus]}"
        )
    spoken = [(clip, normalised(clip.text)) for clip in clips]
    kept = [(clip, text) for clip, text in spoken if text]
    seconds: dict[str, float] = {}
    lines: dict[pathlib.Path, list[str]] = {}
    for split, (clip, text) in zip(_splits(kept), track(kept, console=console), strict=True):
        folder = options.output / split / clip.speaker / clip.group
        transcript = folder / f"{clip.speaker}-{clip.group}.trans.txt"
        written = lines.setdefault(transcript, [])
        name = f"{clip.speaker}-{clip.group}-{len(written):04}"
        folder.mkdir(parents=True, exist_ok=True)
        samples = _read(clip.path)
        soundfile.write(folder / f"{name}.flac", samples, SAMPLE_RATE)
        written.append(f"{name} {text}\n")
        seconds[split] = seconds.get(split, 0.0) + len(samples) / SAMPLE_RATE
    for transcript, texts in lines.items():
        transcript.write_text("".join(texts), encoding="utf-8")
    for split, duration in sorted(seconds.items()):
        console.print(f"{split}: {duration / 60:.1f} min")
    console.print(f"{len(clips) - len(kept)} of {len(clips)} left out: digits, signs or no words")


def normalised(text: str) -> str:
    """Returns the words of a text in capitals; none if it has what is not written as it is said."""
    if re.search(r"[0-9\[\]=#@&/]", text):
        return ""
    composed = unicodedata.normalize("NFC", text.upper()).replace("’", "'")
    kept = "".join(c if c.isalpha() or c == "'" else " " for c in composed)
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


def _asterisk(root: pathlib.Path) -> Iterator[Clip]:
    texts = root / _ASTERISK_TEXTS
    if not texts.is_file():
        return
    with gzip.open(texts, "rt", encoding="utf-8") as file:
        for line in sorted(file):
            name, colon, text = line.partition(":")
            path = root / _ASTERISK_SOUNDS / f"{name}.wav"
            if colon and path.is_file():
                yield Clip(path, "allison", name.split("/")[0] if "/" in name else "prompts", text)


def _fillets(root: pathlib.Path) -> Iterator[Clip]:
    for script in sorted((root / _FILLETS / "script").glob("*/dialogs_cs.lua")):
        level = script.parent.name
        for name, font, text in _DIALOG.findall(script.read_text(encoding="utf-8")):
            path = root / _FILLETS / "sound" / level / "cs" / f"{name}.ogg"
            if path.is_file():
                yield Clip(path, font, level, text.replace("\\", ""))


def _splits(clips: list[tuple[Clip, str]]) -> Iterator[str]:
    """Of each: two of ten to test with, one for development; no sentence in two of them."""
    split_of: dict[str, str] = {}
    count = 0
    for _, text in clips:
        if text not in split_of:
            split_of[text] = "train"
            if len(text.split()) >= _FEWEST_WORDS:
                split_of[text] = {0: "test", 3: "dev", 6: "test"}.get(count % 10, "train")
                count += 1
        yield split_of[text]


def _read(path: pathlib.Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    divisor = math.gcd(SAMPLE_RATE, rate)
    mono = samples.mean(axis=1)
    resampled = signal.resample_poly(mono, SAMPLE_RATE // divisor, rate // divisor)
    return np.clip(resampled, -1, 1).astype(np.float32)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
