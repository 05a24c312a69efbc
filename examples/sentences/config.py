"""What is read from `configs/`: a transducer's file and that of a size make a whole."""

import dataclasses
import pathlib
from typing import Any, Literal

import dacite
import yaml

from jax_mbrnnt import TDT, MultiblankRNNT, Transducer
from speech.spec_augment import SpecAugment

DIRECTORY = pathlib.Path(__file__).with_name("configs")


class ConfigError(ValueError):
    """A file that does not say what it should."""


@dataclasses.dataclass(frozen=True)
class TransducerConfig:
    """Which transducer.

    Attributes:
      kind: of loss and search.
      durations: of the big blanks, or of a TDT's labels and blanks, in the encoder's frames.
      sigma: logit under-normalisation.
      sigma_shares: how much of it counts when: shares of the steps and of sigma, linear in between.
    """

    kind: Literal["rnnt", "multiblank", "tdt"]
    durations: tuple[int, ...] = ()
    sigma: float = 0.0
    sigma_shares: tuple[tuple[float, float], ...] = ((0.4, 1.0), (0.8, 0.0))

    def make(self) -> Transducer:
        """Returns the loss's and the decoders' options."""
        if self.kind == "tdt":
            return TDT(durations=self.durations, sigma=self.sigma)
        return MultiblankRNNT(big_blank_durations=self.durations, sigma=self.sigma)


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """What is heard: recordings of this sample rate, in Hz, as so many mel bands."""

    sample_rate: int = 16000
    bands: int = 80
    low: float = 20.0
    high: float = 7600.0


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The Conformer.

    Attributes:
      width: of a block.
      layers: blocks.
      heads: of the attention.
      kernel: frames that a block's convolution sees.
      channels: of the convolutions that subsample.
      halvings: of the frame rate, from 100 a second: 2 or 3.
      dropout: share of the numbers that are left out in training.
      dtype: of the numbers; parameters are float32.
      remat: compute a block's numbers again for its gradient in the place of keeping them.
      chunk: frames of the encoder that are heard at a time, and hear each other; 0 for all. With
        chunks nothing after one is heard, so that it can be streamed.
      left_chunks: how many chunks before are heard with one.
    """

    width: int
    layers: int
    heads: int
    kernel: int
    channels: int
    halvings: int
    dropout: float
    dtype: Literal["float32", "bfloat16"]
    remat: bool
    chunk: int = 0
    left_chunks: int = 0


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """The prediction network: an LSTM of a size, or one that sees so many last labels."""

    kind: Literal["lstm", "stateless"]
    size: int


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How it is trained.

    Attributes:
      steps: updates.
      frames_per_batch: features' frames, padding included, of all devices: 100 are a second.
      buckets: groups of utterances of like length; each is padded, and compiled, on its own.
      workers: processes that read audio, of each process that trains; with 0 two threads do.
      warmup_steps: over which the learning rate rises to its peak; it then falls along a cosine.
      peak_learning_rate: of AdamW.
      weight_decay: likewise.
      average_decay: what recognises is a moving average of the parameters, which keeps this share
        of itself at a step.
      ctc_weight: of a CTC loss of the encoder alone, beside the transducer's.
      evaluate_every: steps between two tests on the development split, and two checkpoints.
      longest_seconds: of an utterance to train on; longer ones are left out.
      max_gradient_norm: gradients are clipped to this global norm.
      speeds: at which an utterance is played, in hundredths; one is chosen each time.
      augment: masks of bands and frames.
    """

    steps: int
    frames_per_batch: int
    buckets: int
    workers: int
    warmup_steps: int
    peak_learning_rate: float
    weight_decay: float
    average_decay: float
    evaluate_every: int
    ctc_weight: float = 0.3
    longest_seconds: float = 25.0
    max_gradient_norm: float = 1.0
    speeds: tuple[int, ...] = (90, 100, 110)
    augment: SpecAugment = dataclasses.field(default_factory=SpecAugment)


@dataclasses.dataclass(frozen=True)
class Config:
    """All numbers of a training.

    Attributes:
      pieces: of words, that the transducer knows; fewer if the transcripts have not so many.
      joint: width of the joint.
    """

    transducer: TransducerConfig
    pieces: int
    encoder: EncoderConfig
    prediction: PredictionConfig
    joint: int
    training: TrainingConfig
    audio: AudioConfig = AudioConfig()


def read_config(*files: str | pathlib.Path) -> Config:
    """Reads files that complete each other: paths, or names in `configs/`, with or
    without their ending.

    Raises:
      ConfigError: one is not there, or they do not make a whole.
    """
    found: dict[str, Any] = {}
    for file in files:
        places = pathlib.Path(file), DIRECTORY / file, DIRECTORY / f"{file}.yaml"
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            names = sorted(p.name for p in DIRECTORY.glob("*.yaml"))
            raise ConfigError(f"{file}: expected a file, or one of {names}")
        try:
            found |= yaml.safe_load(path.read_text())
        except (yaml.YAMLError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from None
    try:
        return dacite.from_dict(Config, found, dacite.Config(cast=[tuple], strict=True))
    except dacite.DaciteError as error:
        raise ConfigError(f"{', '.join(map(str, files))}: {error}") from None


def write_config(config: Config, path: pathlib.Path) -> None:
    """Writes what `read_config` reads."""
    lists = dataclasses.asdict(config, dict_factory=lambda items: {k: _plain(v) for k, v in items})
    path.write_text(yaml.safe_dump(lists, sort_keys=False))


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
