"""Recognising a split: greedy, with a beam and an n-gram, or as a stream; and what it got wrong."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from flax import nnx

from jax_mbrnnt import GreedyDecoding, LanguageModel, StreamCarry, ctm_lines, word_times
from sentences.config import Config
from sentences.conformer import Memories
from sentences.data import Bucket, Example, filters, test_batches
from sentences.model import encoder_frame_seconds
from sentences.pieces import Pieces
from speech.batches import Batch
from speech.intervals import WordErrors, word_errors
from speech.log_mel import LogMel
from speech.recogniser import Recogniser


class Recognised(NamedTuple):
    """What was recognised in an utterance.

    Attributes:
      example: the utterance.
      labels: `[U]`.
      frames: `[U]`, of the encoder, at which each was said.
      durations: `[U]`, the frames that each takes; 0 where the model does not say.
      log_probs: `[U]`, of each.
      num_frames: of the encoder.
      joint_evaluations: nodes of the lattice that were visited.
    """

    example: Example
    labels: np.ndarray
    frames: np.ndarray
    durations: np.ndarray
    log_probs: np.ndarray
    num_frames: int
    joint_evaluations: int

    def ctm(self, pieces: Pieces, config: Config) -> list[str]:
        """Returns its words with their times and confidences, as lines of a CTM file."""
        names = pieces.names()
        words = word_times(
            [names[label] for label in self.labels],
            self.frames,
            self.durations,
            num_frames=self.num_frames,
            frame_shift=encoder_frame_seconds(config),
            confidences=np.exp(self.log_probs),
        )
        return ctm_lines(words, self.example.sentence.name)


class Fusion(NamedTuple):
    """What helps a beam search: the arguments of `jax_mbrnnt.beam_decode` by their names."""

    language_model: LanguageModel
    language_model_weight: float
    label_bonus: float


def recognise(
    recogniser: Recogniser,
    buckets: Sequence[Bucket],
    config: Config,
    size: int,
    beam: int = 1,
    fusion: Fusion | None = None,
) -> list[Recognised]:
    """Recognises utterances, so many at once: greedily, or with a beam of more than one."""
    decode = nnx.cached_partial(_decode, recogniser)
    found: list[Recognised] = []
    for examples, batch in test_batches(buckets, config, size):
        found += _recognised(examples, *decode(batch, fusion, beam))
    return found


def recognise_and_score(
    recogniser: Recogniser, buckets: Sequence[Bucket], config: Config, size: int
) -> tuple[list[Recognised], np.ndarray]:
    """Recognises utterances greedily, and computes the losses of what was said, `[N]`.

    The losses are negative log-likelihoods in nats, without under-normalisation.
    """
    found: list[Recognised] = []
    losses = []
    for examples, batch in test_batches(buckets, config, size):
        found += _recognised(examples, *_decode(recogniser, batch, None, 1))
        losses.append(np.asarray(_losses(recogniser, batch), np.float64)[: len(examples)])
    return found, np.concatenate(losses)


@functools.partial(nnx.jit, static_argnums=3)
def _decode(recogniser: Recogniser, batch: Batch, fusion: Fusion | None, beam: int) -> Any:
    """Returns what `GreedyDecoding` has, of a beam its best, and the frames of each `[B]`."""
    encoded, lengths = recogniser.encoder(batch)
    if beam == 1:
        return recogniser.search(encoded, lengths), lengths
    options = {} if fusion is None else fusion._asdict()
    found = recogniser.search_with_beam(encoded, lengths, beam, **options)
    names = ("labels", "label_lengths", "frames", "durations", "label_log_probs")
    return found._replace(**{name: getattr(found, name)[:, 0] for name in names}), lengths


def _recognised(examples: Sequence[Example], *found: Any) -> Iterator[Recognised]:
    """Of a batch: what `_decode` returned of its first rows."""
    decoding, lengths = jax.device_get(found)
    of_labels = (decoding.labels, decoding.frames, decoding.durations, decoding.label_log_probs)
    for row, example in enumerate(examples):
        count, nodes = int(decoding.label_lengths[row]), int(decoding.joint_evaluations[row])
        yield Recognised(example, *(x[row, :count] for x in of_labels), int(lengths[row]), nodes)


def stream(
    recogniser: Recogniser, sentences: Sequence[Example], config: Config
) -> list[Recognised]:
    """Recognises utterances one by one, each as it would come from a microphone.

    Raises:
      ValueError: the encoder does not hear by chunks.
    """
    hear = nnx.cached_partial(_hear, recogniser)
    return [_stream(recogniser, hear, example, config) for example in sentences]


def _stream(
    recogniser: Recogniser, hear: Callable[..., Any], example: Example, config: Config
) -> Recognised:
    memories = recogniser.encoder.nothing_heard(1)
    carry = recogniser.stream().init(1)
    parts: list[GreedyDecoding] = []
    num_frames = 0
    for features in _chunks(example, config):
        length = len(features) >> config.encoder.halvings
        padding = (config.encoder.chunk << config.encoder.halvings) - len(features)
        padded = np.pad(features, ((0, padding), (0, 0)))[None]
        found, carry, memories = hear(carry, memories, padded, np.array([length]))
        parts.append(jax.device_get(found))
        num_frames += length
    counts = [int(part.label_lengths[0]) for part in parts]

    def joined(name: str) -> np.ndarray:
        rows = [getattr(part, name)[0, :n] for part, n in zip(parts, counts, strict=True)]
        return np.concatenate([np.zeros(0, int), *rows])

    names = ("labels", "frames", "durations", "label_log_probs")
    nodes = int(carry.joint_evaluations[0])
    return Recognised(example, *map(joined, names), num_frames, nodes)


def _chunks(example: Example, config: Config) -> Iterator[np.ndarray]:
    """Yields the features of as much audio as the encoder hears at a time, the rest at the end."""
    size = config.encoder.chunk << config.encoder.halvings
    log_mel, waiting = LogMel(filters(config.audio)), np.empty((0, config.audio.bands), np.float32)
    with soundfile.SoundFile(example.sentence.path) as file:
        while True:
            samples = file.read(config.audio.sample_rate // 10, dtype="float32")
            is_last = file.tell() >= file.frames
            waiting = np.concatenate([waiting, log_mel.hear(samples, is_last=is_last)])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
            if is_last:
                break
    if len(waiting) >> config.encoder.halvings:
        yield waiting


@nnx.jit
def _hear(
    recogniser: Recogniser,
    carry: StreamCarry,
    memories: Memories,
    features: jax.Array,
    lengths: jax.Array,
) -> tuple[GreedyDecoding, StreamCarry, Memories]:
    encoded, memories = recogniser.encoder.step(memories, features, lengths)
    found, carry = recogniser.stream().step(carry, encoded, jnp.asarray(lengths, jnp.int32))
    return found, carry, memories


@nnx.jit
def _losses(recogniser: Recogniser, batch: Batch) -> jax.Array:
    return recogniser.losses(batch, sigma_share=0.0)


def errors_of(found: Sequence[Recognised], pieces: Pieces) -> WordErrors:
    """Counts the wrong words of each utterance."""
    return word_errors(*texts(found, pieces))


def character_errors_of(found: Sequence[Recognised], pieces: Pieces) -> WordErrors:
    """The same with characters in the place of words."""
    said, heard = texts(found, pieces)
    spaced: Callable[[str], str] = functools.partial(str.join, " ")
    return word_errors(
        [spaced(text.replace(" ", "_")) for text in said],
        [spaced(text.replace(" ", "_")) for text in heard],
    )


def texts(found: Sequence[Recognised], pieces: Pieces) -> tuple[list[str], list[str]]:
    """Returns what was said and what was heard."""
    return [x.example.sentence.text for x in found], [pieces.text(x.labels) for x in found]
