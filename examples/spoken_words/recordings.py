"""Single spoken words: recorded prompts of a telephone exchange, or made-up tones."""
# ruff: noqa: SIM905 -- long lists of words are easier to read without the quotes.

import math
import pathlib

import numpy as np
import soundfile
from scipy import signal

SAMPLE_RATE = 8000
"""Of everything in this example; recordings at another rate are resampled."""

DEBIAN_PACKAGE = "asterisk-core-sounds-en-wav"
"""568 English prompts by one speaker (Allison Smith), CC-BY-SA 3.0."""

DEBIAN_DIRECTORY = pathlib.Path("/usr/share/asterisk/sounds/en_US_f_Allison")
"""Where that package puts them."""

Recordings = dict[str, list[np.ndarray]]
"""The recordings of each word: its samples, trimmed and of unit loudness."""

_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
_TENS = "thirty forty fifty sixty seventy eighty ninety".split()
_DAYS = "sunday monday tuesday wednesday thursday friday saturday".split()
_MONTHS = (
    "january february march april may june july august september october november december"
).split()
_PHONETIC_ALPHABET = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar "
    "papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu"
).split()

# The files of `letters/` are left out: "b", "c", "d" ... rhyme, and are hard to tell apart.
_WORD_OF_FILE = {
    **{f"digits/{i}": word for i, word in enumerate(_CARDINALS)},
    **{f"digits/{30 + 10 * i}": word for i, word in enumerate(_TENS)},
    **{f"digits/h-{i}": word for i, word in enumerate(_ORDINALS)},
    **{f"digits/h-{30 + 10 * i}": word[:-1] + "ieth" for i, word in enumerate(_TENS)},
    **{f"digits/{word}": word for word in ("hundred", "thousand", "million", "billion")},
    **{f"digits/h-{word}": word + "th" for word in ("hundred", "thousand", "million", "billion")},
    **{f"digits/day-{i}": word for i, word in enumerate(_DAYS)},
    **{f"digits/mon-{i}": word for i, word in enumerate(_MONTHS)},
    **{f"digits/{word}": word for word in ("today", "tomorrow", "yesterday", "oclock", "at")},
    **{f"digits/{word}": word for word in ("dollars", "minus", "oh", "pound", "star")},
    "digits/a-m": "am",
    "digits/p-m": "pm",
    **{f"phonetic/{word[0]}_p": word for word in _PHONETIC_ALPHABET},
    "phonetic/9_p": "niner",
}


class RecordingsNotFoundError(FileNotFoundError):
    """The prompts are not where they were looked for."""


def read_recordings(directory: pathlib.Path) -> Recordings:
    """Reads the prompts below a directory laid out as in Debian's package.

    Args:
      directory: holds `digits/*.wav` and `phonetic/*.wav`. Files that are not there are passed
        over, as are those whose name is not among the known words.

    Returns:
      The recordings of each word.

    Raises:
      RecordingsNotFoundError: none of the prompts is there.
    """
    recordings: Recordings = {}
    for file, word in _WORD_OF_FILE.items():
        path = directory / f"{file}.wav"
        if path.is_file():
            samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
            recordings.setdefault(word, []).append(_prepare(samples.mean(axis=1), sample_rate))
    if not recordings:
        raise RecordingsNotFoundError(
            f"No recordings (digits/*.wav, phonetic/*.wav) in {directory}.\n"
            f"On Debian and Ubuntu install them with\n"
            f"    apt-get install {DEBIAN_PACKAGE}\n"
            f"or unpack that package elsewhere and name its directory with --recordings, "
            f"or try the program without any audio with --synthetic."
        )
    return recordings


def make_synthetic_recordings() -> Recordings:
    """Returns made-up words in which each letter sounds as a pair of tones of its own.

    Nothing of it is speech: it is there to run the program where there is no audio.
    """
    words = "bado deki fumo gila hopa kuve lamu nide pofu rika sule tavo vemi zuna".split()
    letters = sorted(set("".join(words)))
    tones = {letter: (300 + 60 * i, 1400 + 110 * i) for i, letter in enumerate(letters)}
    time = np.arange(int(0.12 * SAMPLE_RATE)) / SAMPLE_RATE
    envelope = signal.windows.tukey(time.size, 0.4)
    sounds = {
        letter: envelope * (np.sin(2 * math.pi * low * time) + np.sin(2 * math.pi * high * time))
        for letter, (low, high) in tones.items()
    }
    return {
        word: [_prepare(np.concatenate([sounds[letter] for letter in word]), SAMPLE_RATE)]
        for word in words
    }


def choose_recordings(
    directory: pathlib.Path, synthetic: bool, vocabulary: int | None
) -> Recordings:
    """Returns the first so many words, all of them if None: those read there, or made-up ones."""
    recordings = make_synthetic_recordings() if synthetic else read_recordings(directory)
    return dict(list(recordings.items())[:vocabulary])


def _prepare(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Resamples, trims silence from both ends and scales to a root mean square of one."""
    if sample_rate != SAMPLE_RATE:
        divisor = math.gcd(SAMPLE_RATE, sample_rate)
        samples = signal.resample_poly(samples, SAMPLE_RATE // divisor, sample_rate // divisor)
    # Silence is what stays 40 dB below the loudest of the 10 ms blocks.
    block = SAMPLE_RATE // 100
    blocks = samples[: samples.size // block * block].reshape(-1, block)
    power = np.square(blocks).mean(axis=1)
    loud = np.flatnonzero(power > 1e-4 * power.max())
    trimmed = samples[loud[0] * block : (loud[-1] + 1) * block]
    return (trimmed / np.sqrt(np.square(trimmed).mean())).astype(np.float32)
