"""The recipe for sentences, part by part: corpus, input, encoder, configurations."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import EXAMPLES, RATE, SIZE, example, write_corpus, write_sentences

for module in (
    *("dacite", "flax", "grain", "jiwer", "kaldi_native_fbank", "optax", "orbax.checkpoint"),
    *("rich", "scipy", "sentencepiece", "soundfile", "tensorboardX", "tyro", "yaml"),
):
    pytest.importorskip(module, reason="needs the extra `sentences`")

import grain  # noqa: E402
import soundfile  # noqa: E402
from flax import nnx  # noqa: E402

pytestmark = pytest.mark.usefixtures("as_the_examples_run")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        write_sentences(directory)
    return directory


def config_of(corpus: pathlib.Path, name: str = "conformer_tdt.yaml") -> Any:
    return example("sentences.config").read_config(corpus / "size.yaml", name)


def pieces_of(corpus: pathlib.Path) -> Any:
    pieces = example("sentences.pieces")
    found = example("sentences.corpus").read_split(corpus, "train", RATE)
    return pieces.Pieces(pieces.train_pieces((sentence.text for sentence in found), 30))


# ---- the corpus --------------------------------------------------------------------------


def test_faults_of_a_corpus_are_named(tmp_path: pathlib.Path) -> None:
    read = example("sentences.corpus").read_split
    error = example("sentences.corpus").CorpusError
    second = np.zeros(RATE, np.float32)
    write_corpus(tmp_path, "good", [("ONE", second), ("TWO  WORDS", second[:4000])])
    found = read(tmp_path, "good", RATE)
    assert [(s.name, s.text, s.seconds) for s in found] == [
        ("7-1-0000", "ONE", 1.0),
        ("7-1-0001", "TWO WORDS", 0.5),
    ]

    write_corpus(tmp_path, "bad", [("ONE", second)] * 6)
    folder = tmp_path / "bad" / "7" / "1"
    soundfile.write(folder / "7-1-0001.flac", second, 2 * RATE)
    soundfile.write(folder / "7-1-0002.flac", second[:0], RATE)
    soundfile.write(folder / "7-1-0003.flac", np.stack([second, second], axis=1), RATE)
    (folder / "7-1-0004.flac").write_bytes(b"this is no FLAC")
    (folder / "7-1-0005.flac").unlink()
    soundfile.write(folder / "7-1-0006.flac", second, RATE)
    with (folder / "7-1.trans.txt").open("a") as file:
        file.write("7-1-0007\n")
    soundfile.write(folder / "7-1-0007.flac", second, RATE)
    with pytest.raises(error) as raised:
        read(tmp_path, "bad", RATE)
    told = {line.split(": ")[0]: line for line in str(raised.value).splitlines()}
    for number, what in {
        1: "expected a sample rate of 8000 Hz, got 16000",
        2: "has no samples",
        3: "expected one channel, got 2",
        4: "cannot be read",
        5: "is not there, but",
        6: "has no line in a *.trans.txt",
        7: "is empty",
    }.items():
        assert what in told[str(folder / f"7-1-000{number}.flac")]
    assert len(told) == 7
    with pytest.raises(error, match="expected a folder"):
        read(tmp_path, "nowhere", RATE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=r"expected \*.trans.txt and \*.flac in it, found none"):
        read(tmp_path, "empty", RATE)


def test_transcripts_that_are_too_long_are_left_out(
    corpus: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sound = np.zeros(RATE // 2, np.float32)
    write_corpus(tmp_path, "train", [("BADO", sound), ("BADO DEKI " * 20, sound), ("BADO", sound)])
    sentences = example("sentences.corpus").read_split(tmp_path, "train", RATE)
    data = example("sentences.data")
    kept, left_out = data.examples(sentences, pieces_of(corpus), config_of(corpus))
    assert [x.sentence.name for x in kept] == ["7-1-0000", "7-1-0002"]
    assert [x.name for x in left_out] == ["7-1-0001"]
    with pytest.raises(example("sentences.corpus").CorpusError, match="long enough"):
        data.examples(left_out, pieces_of(corpus), config_of(corpus))


def test_pieces(corpus: pathlib.Path) -> None:
    pieces = pieces_of(corpus)
    text = "BADO DEKI"
    assert pieces.text(pieces.labels(text)) == text
    assert [pieces.names()[label] for label in pieces.labels(text)] == pieces.split(text)
    assert pieces.labels(text).dtype == np.int32
    assert pieces.labels(text).max() < len(pieces)


# ---- the input ---------------------------------------------------------------------------


@pytest.fixture
def buckets(corpus: pathlib.Path) -> Any:
    data, config = example("sentences.data"), config_of(corpus)
    sentences = example("sentences.corpus").read_split(corpus, "train", RATE)
    kept, _ = data.examples(sentences, pieces_of(corpus), config)
    return data.make_buckets(kept, 3, 0.9)


def in_this_process(config: Any) -> Any:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, workers=0))


def first_batches(buckets: Any, config: Any, count: int, *parts: int, seed: int = 0) -> list[Any]:
    batches = iter(example("sentences.data").training_input(buckets, config, seed, *parts))
    return [next(batches) for _ in range(count)]


def test_an_epoch_has_every_utterance_once(corpus: pathlib.Path, buckets: Any) -> None:
    config, data = in_this_process(config_of(corpus)), example("sentences.data")
    (bucket, *_) = buckets
    size = 4
    frames = size * bucket.frames
    training = dataclasses.replace(config.training, frames_per_batch=frames)
    config = dataclasses.replace(config, training=training)
    some = dataclasses.replace(bucket, examples=bucket.examples[:12])
    assert data.batches_an_epoch([some], config, 2) == 3
    batches = first_batches([some], config, 6, 2, 0, 1)
    expected = sorted(x.labels.tolist() for x in some.examples)
    orders = []
    for epoch in batches[:3], batches[3:]:
        rows = [
            labels[:length].tolist()
            for batch in epoch
            for labels, length in zip(batch.labels, batch.label_lengths, strict=True)
        ]
        assert sorted(rows) == expected
        orders.append(rows)
    assert orders[0] != orders[1]
    assert {batch.features.shape for batch in batches} == {(4, bucket.frames, 40)}


def test_batches_of_one(corpus: pathlib.Path, buckets: Any) -> None:
    config = in_this_process(config_of(corpus))
    training = dataclasses.replace(config.training, frames_per_batch=1)
    config = dataclasses.replace(config, training=training)
    batches = first_batches(buckets, config, 3, 1, 0, 1)
    assert [len(batch.labels) for batch in batches] == [1, 1, 1]


def test_processes_share_a_batch(corpus: pathlib.Path, buckets: Any) -> None:
    config = in_this_process(config_of(corpus))
    whole = first_batches(buckets, config, 6, 4, 0, 1)
    parts = [first_batches(buckets, config, 6, 4, process, 2) for process in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for field, *of_halves in zip(batch, *halves, strict=True):
            np.testing.assert_array_equal(field, np.concatenate(of_halves))
    assert len({batch.features.shape for batch in whole}) == 3
    assert all(len(batch.labels) % 4 == 0 for batch in whole)
    assert all(np.prod(batch.features.shape[:2]) <= 4800 for batch in whole)
    other = first_batches(buckets, config, 1, 4, 0, 1, seed=1)
    assert not np.array_equal(other[0].features, whole[0].features)


@pytest.mark.parametrize("workers", [0, 2])
def test_input_goes_on_where_it_was(corpus: pathlib.Path, buckets: Any, workers: int) -> None:
    config = in_this_process(config_of(corpus))
    expected = first_batches(buckets, config, 6, 1, 0, 1)
    training = dataclasses.replace(config.training, workers=workers)
    config = dataclasses.replace(config, training=training)
    batches = iter(example("sentences.data").training_input(buckets, config, 0, 1, 0, 1))
    for _ in range(3):
        next(batches)
    state = batches.get_state()
    next(batches)
    batches.close()
    again = iter(example("sentences.data").training_input(buckets, config, 0, 1, 0, 1))
    again.set_state(state)
    for batch in expected[3:]:
        for field, other in zip(batch, next(again), strict=True):
            np.testing.assert_array_equal(field, other)
    again.close()
    assert isinstance(again, grain.DatasetIterator)


def test_spec_augment() -> None:
    features = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    augment = example("speech.spec_augment").SpecAugment(
        band_masks=1, most_bands=8, time_masks=2, most_time=0.05
    )
    shares = []
    for seed in range(50):
        masked = augment(features, np.random.default_rng(seed))
        changed = masked != features
        assert np.all(masked[changed] == features.mean())
        bands = changed.all(axis=0).sum()
        frames = changed.all(axis=1).sum()
        assert bands <= 8
        assert frames <= 2 * 10
        shares.append((bands, frames))
    assert np.max(shares, axis=0).tolist() == [8, max(f for _, f in shares)]
    assert max(f for _, f in shares) > 10


# ---- the encoder -------------------------------------------------------------------------


def encoder_of(corpus: pathlib.Path, **changes: Any) -> Any:
    config = dataclasses.replace(config_of(corpus).encoder, **changes)
    conformer = example("sentences.conformer").Conformer(config, 40, 16, rngs=nnx.Rngs(0))
    conformer.mean[...] = jnp.full(40, 0.3)
    return conformer


def batch_of(features: np.ndarray, lengths: list[int]) -> Any:
    labels = np.zeros((len(features), 1), np.int32)
    lengths = np.array(lengths, np.int32)
    return example("speech.batches").Batch(features, lengths, labels, lengths)


@pytest.mark.parametrize("chunk", [0, 8])
def test_padding_is_not_heard(corpus: pathlib.Path, chunk: int) -> None:
    encoder = encoder_of(corpus, chunk=chunk)
    features = np.random.default_rng(0).normal(size=(2, 131, 40)).astype(np.float32)
    alone, length = encoder(batch_of(features[:1, :101], [101]))
    padded, lengths = encoder(batch_of(features, [101, 131]))
    assert lengths.tolist() == [25, 32]
    assert length.tolist() == [25]
    np.testing.assert_allclose(padded[:1, :25], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("halvings", [2, 3])
def test_chunks_are_encoded_as_the_whole(corpus: pathlib.Path, halvings: int) -> None:
    """Nothing behind a chunk is heard, and what is before it is remembered."""
    encoder = encoder_of(corpus, halvings=halvings)
    frames = 43
    features = np.random.default_rng(0).normal(size=(2, frames << halvings, 40))
    features = features.astype(np.float32)
    whole, lengths = encoder(batch_of(features, [frames << halvings] * 2))
    assert lengths.tolist() == [frames] * 2
    memories, size = encoder.nothing_heard(2), 8 << halvings
    for begin in range(0, frames, 8):
        part = features[:, begin << halvings :][:, :size]
        length = min(8, frames - begin)
        part = np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0)))
        encoded, memories = encoder.step(memories, part, np.array([length] * 2))
        expected = whole[:, begin : begin + length]
        np.testing.assert_allclose(encoded[:, :length], expected, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="expected an encoder that hears by chunks"):
        encoder_of(corpus, chunk=0).nothing_heard(1)


def test_left_chunks_are_what_is_heard(corpus: pathlib.Path) -> None:
    """One layer without convolution beyond a frame: chunk 3 hears chunks 1 and 2, and not 0."""
    encoder = encoder_of(corpus, layers=1, kernel=1)
    features = np.random.default_rng(0).normal(size=(1, 32 * 4, 40)).astype(np.float32)
    whole = encoder(batch_of(features, [128]))[0][:, 24:]
    changed = features.copy()
    changed[:, : 8 * 4 - 4] += 1  # the last frame of chunk 0 is seen by the next one's halvings
    np.testing.assert_array_equal(encoder(batch_of(changed, [128]))[0][:, 24:], whole)
    changed = features.copy()
    changed[:, 9 * 4 : 10 * 4] += 1
    assert not np.allclose(encoder(batch_of(changed, [128]))[0][:, 24:], whole)


def test_remat_and_dropout(corpus: pathlib.Path) -> None:
    """Gradients with recomputation are those without, dropout included."""
    features = np.random.default_rng(0).normal(size=(1, 64, 40)).astype(np.float32)
    batch, key = batch_of(features, [64]), jax.random.key(3)

    def gradients(remat: bool, key: Any) -> Any:
        encoder = encoder_of(corpus, remat=remat, dropout=0.5)
        found = nnx.grad(lambda encoder: (encoder(batch, key)[0] ** 2).sum())(encoder)
        return jax.tree.leaves(nnx.to_pure_dict(found))

    plain, rematted = gradients(False, key), gradients(True, key)
    for a, b in zip(plain, rematted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(a).max()))
    other = gradients(False, jax.random.key(4))
    assert not all(np.allclose(a, b) for a, b in zip(plain, other, strict=True))


def test_ctc_leaves_out_what_it_cannot_align(corpus: pathlib.Path) -> None:
    """Twice the same piece needs a blank between them, which a transducer does not."""
    recogniser = example("sentences.model").make_recogniser(config_of(corpus), 5, 0)
    encoded = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 48)), jnp.float32)
    batch = batch_of(np.zeros((2, 16, 40), np.float32), [16, 16])
    labels = np.array([[0, 1, 2, 3], [1, 1, 2, 2]], np.int32)
    batch = batch._replace(labels=labels, label_lengths=np.array([4, 4], np.int32))
    fits, does_not = recogniser.ctc_losses(encoded, jnp.array([4, 4]), batch)
    log_probs = jax.nn.log_softmax(recogniser.frames_alone(encoded[0]))
    assert float(fits) == pytest.approx(-float(sum(log_probs[i, i] for i in range(4))), rel=1e-4)
    assert does_not == 0


@pytest.mark.parametrize("kind", ["LSTM", "Stateless"])
def test_prediction_networks_step_as_they_run(kind: str) -> None:
    network = getattr(example("speech.prediction"), kind)(9, 8, 6, 2, rngs=nnx.Rngs(0))
    labels = jnp.array([[3, 1, 4, 1], [5, 0, 2, 6]], jnp.int32)
    whole = network(labels)
    assert whole.shape == (2, 5, 6)
    predicted, state = network.step(jnp.array([8, 8], jnp.int32), network.initial_state(2))
    for u in range(5):
        np.testing.assert_allclose(predicted, whole[:, u], rtol=1e-5, atol=1e-6)
        if u < 4:
            predicted, state = network.step(labels[:, u], state)


# ---- configurations ----------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "small", "large"])
def test_configurations_differ_in_the_transducer_alone(size: str, tmp_path: pathlib.Path) -> None:
    config = example("sentences.config")
    found = {
        name: config.read_config(f"{size}.yaml", f"conformer_{name}.yaml")
        for name in ("rnnt", "multiblank", "tdt")
    }
    for name, one in found.items():
        assert one.transducer.kind == name
        assert dataclasses.replace(one, transducer=found["rnnt"].transducer) == found["rnnt"]
        assert len(one.transducer.make().arcs) == {"rnnt": 2, "multiblank": 5, "tdt": 9}[name]
        config.write_config(one, tmp_path / "written.yaml")
        assert config.read_config(tmp_path / "written.yaml") == one


def test_faults_of_a_configuration_are_named(tmp_path: pathlib.Path) -> None:
    config = example("sentences.config")
    with pytest.raises(
        config.ConfigError, match=r"nowhere.yaml: expected a file, or one of .*tiny"
    ):
        config.read_config("nowhere.yaml")
    (tmp_path / "size.yaml").write_text(SIZE + "peices: 3\n")
    with pytest.raises(config.ConfigError, match="peices"):
        config.read_config(tmp_path / "size.yaml", "conformer_tdt.yaml")
    with pytest.raises(config.ConfigError, match="transducer"):
        config.read_config("tiny.yaml")
    (tmp_path / "wrong.yaml").write_text("a: [1")
    with pytest.raises(config.ConfigError, match="wrong"):
        config.read_config(tmp_path / "wrong.yaml")
