"""The recipe for sentences: runs of its programs on a small corpus of tones."""

import gzip
import json
import math
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np
import pytest

from examples import EXAMPLES, RATE, SIZE, example, run_example, write_sentences

for module in (
    *("dacite", "flax", "grain", "jiwer", "kaldi_native_fbank", "optax", "orbax.checkpoint"),
    *("rich", "scipy", "sentencepiece", "soundfile", "tensorboardX", "tyro", "yaml"),
):
    pytest.importorskip(module, reason="needs the extra `sentences`")

import soundfile  # noqa: E402
from flax import nnx  # noqa: E402

pytestmark = pytest.mark.usefixtures("as_the_examples_run", "programs_in_common")

Trained = tuple[pathlib.Path, list[dict[str, Any]]]  # the output, and the rows of dev.jsonl


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        write_sentences(directory)
    return directory


def run_training(
    corpus: pathlib.Path, output: pathlib.Path, *arguments: str, size: str = "size.yaml"
) -> subprocess.CompletedProcess[str]:
    return run_example(
        *("sentences/train.py", "--data", str(corpus), "--size", str(corpus / size)),
        *("--train", "train", "--dev", "dev", "--output", str(output), *arguments),
    )


def train(
    corpus: pathlib.Path, output: pathlib.Path, *arguments: str, size: str = "size.yaml"
) -> list[dict[str, Any]]:
    finished = run_training(corpus, output, *arguments, size=size)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in (output / "dev.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("trained")
    return output, train(corpus, output)


def test_learns(trained: Trained) -> None:
    output, rows = trained
    assert [row["step"] for row in rows] == [150, 300]
    # Untrained it is some nats a piece, and every word is wrong.
    assert rows[-1]["loss"] < 0.5
    assert rows[-1]["word_error_rate"] < 0.3
    assert rows[-1]["nodes_a_frame"] < 0.9
    assert rows[0]["loss"] > rows[-1]["loss"]
    assert list((output / "tensorboard").glob("events.*"))
    assert len((output / "pieces.txt").read_text().splitlines()) == 160


def state_of(output: pathlib.Path) -> list[np.ndarray]:
    config = example("sentences.config").read_config(output / "config.yaml")
    pieces = example("sentences.pieces").read_pieces(output / "pieces.model")
    recogniser = example("sentences.training").load(config, len(pieces), output / "checkpoints")
    return jax.tree.leaves(jax.device_get(nnx.to_pure_dict(nnx.state(recogniser))))


def test_resumes_to_the_bit(
    corpus: pathlib.Path,
    trained: Trained,
    tmp_path: pathlib.Path,
) -> None:
    """Interrupted behind a checkpoint: what came after it is done again."""
    output, rows = trained
    interrupted = train(corpus, tmp_path, "--stop-at", "160")
    assert len(interrupted) == 1
    resumed = train(corpus, tmp_path, "--resume")
    for row, other in zip(rows, resumed, strict=True):
        for name in ("step", "loss", "word_error_rate", "nodes_a_frame"):
            assert row[name] == other[name]
    for a, b in zip(state_of(output), state_of(tmp_path), strict=True):
        np.testing.assert_array_equal(a, b)


def test_four_devices_agree_with_one(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of batches that are the same: as many utterances as four devices can share."""
    sentences = example("sentences.corpus").read_split(corpus, "train", RATE)
    frames = 8 * math.ceil(100 * max(sentence.seconds for sentence in sentences))
    size = SIZE.replace("buckets: 2", "buckets: 1").replace("stateless, size: 2", "lstm, size: 32")
    size = size.replace("frames_per_batch: 4800", f"frames_per_batch: {frames}")
    (corpus / "whole.yaml").write_text(size)
    few = ("--config", "conformer_multiblank.yaml", "--steps", "6")
    (one,) = train(corpus, tmp_path / "one", *few, size="whole.yaml")
    (four,) = train(corpus, tmp_path / "four", *few, "--devices", "4", size="whole.yaml")
    assert four["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)


def decode(
    corpus: pathlib.Path, output: pathlib.Path, tmp_path: pathlib.Path, *arguments: str
) -> tuple[str, list[str], list[list[str]]]:
    """What it prints, what it heard, and the fields of its CTM."""
    files = tmp_path / "heard.txt", tmp_path / "heard.ctm"
    finished = run_example(
        *("sentences/decode.py", "--data", str(corpus), "--split", "dev", "--output", str(output)),
        *("--hypotheses", str(files[0]), "--ctm", str(files[1]), *arguments),
    )
    assert finished.returncode == 0, finished.stderr
    heard, ctm = (sorted(file.read_text().splitlines()) for file in files)
    return finished.stdout, heard, [line.split() for line in ctm]


def test_streaming_and_whole_hear_the_same(
    corpus: pathlib.Path,
    trained: Trained,
    tmp_path: pathlib.Path,
) -> None:
    output, rows = trained
    printed, whole, ctm = decode(corpus, output, tmp_path)
    _, streamed, ctm_of_stream = decode(corpus, output, tmp_path, "--search", "stream")
    assert whole == streamed
    for line, other in zip(ctm, ctm_of_stream, strict=True):
        assert line[:5] == other[:5]  # the times, too; confidences to roundings
        assert float(line[5]) == pytest.approx(float(other[5]), abs=2e-4)
        assert 0 < float(line[5]) <= 1
    assert f"word error rate {100 * rows[-1]['word_error_rate']:.1f} %" in printed
    assert len(whole) == 12
    assert sum(len(line.split()) - 1 for line in whole) == len(ctm)


def test_beam_listens_to_an_ngram(
    corpus: pathlib.Path,
    trained: Trained,
    tmp_path: pathlib.Path,
) -> None:
    """One that abhors a piece keeps it from being heard."""
    output, _ = trained
    _, heard, _ = decode(corpus, output, tmp_path, "--search", "beam")
    pieces = example("sentences.pieces").read_pieces(output / "pieces.model")
    split = [pieces.split(line.partition(" ")[2]) for line in heard]
    common = max(pieces.names(), key=lambda name: sum(name in line for line in split))
    assert sum(common in line for line in split) > 3
    grams = [f"{-9 if name == common else -1} {name}" for name in pieces.names()]
    arpa = ["\\data\\", f"ngram 1={len(grams) + 2}", "", "\\1-grams:", "-99 <s>", "-1 </s>"]
    (tmp_path / "abhors.arpa").write_text("\n".join([*arpa, *grams, "", "\\end\\"]))
    ngram = ("--search", "beam", "--ngram", str(tmp_path / "abhors.arpa"), "--ngram-weight", "2")
    _, without, _ = decode(corpus, output, tmp_path, *ngram)
    assert not any(common in pieces.split(line.partition(" ")[2]) for line in without)


def test_another_configuration_is_not_resumed(corpus: pathlib.Path, trained: Trained) -> None:
    output, _ = trained
    finished = run_example(
        *(
            "sentences/train.py",
            "--data",
            str(corpus),
            "--size",
            str(corpus / "size.yaml"),
            "--resume",
        ),
        *("--train", "train", "--dev", "dev", "--output", str(output), "--steps", "200"),
    )
    assert finished.returncode == 1
    assert "is of another configuration" in finished.stderr
    assert "Traceback" not in finished.stderr


# ---- recordings that Debian has ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thank you for calling Waldo's company.", "THANK YOU FOR CALLING WALDO'S COMPANY"),
        ("...to lock, or 'unlock' it", "TO LOCK OR UNLOCK IT"),
        ("Vidíš to oko? Němý svědek...", "VIDÍŠ TO OKO NĚMÝ SVĚDEK"),
        ("Press 1", ""),
        ("[this is a simple beep tone]", ""),
        ("...", ""),
    ],
)
def test_transcripts_are_what_is_said(text: str, expected: str) -> None:
    assert example("sentences.prepare").normalised(text) == expected


def test_prepare(tmp_path: pathlib.Path) -> None:
    """Debian's two layouts become the corpus's; no test sentence is in the training."""
    tone = np.sin(np.arange(8000) / 5).astype(np.float32) / 2
    sounds = tmp_path / "share/asterisk/sounds/en_US_f_Allison"
    (sounds / "digits").mkdir(parents=True)
    documents = tmp_path / "share/doc/asterisk-core-sounds-en"
    documents.mkdir(parents=True)
    texts = {f"say-{i:02}": f"Say the word {chr(97 + i % 25)} now." for i in range(30)}
    texts |= {"digits/1": "one", "beep": "[beep]", "absent": "This is not there."}
    for name in set(texts) - {"absent"}:
        soundfile.write(sounds / f"{name}.wav", tone, 8000)
    lines = "; a comment\n\n" + "".join(f"{name}: {text}\n" for name, text in texts.items())
    with gzip.open(documents / "core-sounds-en.txt.gz", "wt") as file:
        file.write(lines)
    level = tmp_path / "share/games/fillets-ng/script/reef"
    level.mkdir(parents=True)
    (level / "dialogs_cs.lua").write_text(
        'dialogId("reef-1", "font_small", "What?")\ndialogStr("Co \\"je\\" to?")\n\n\n'
        'dialogId("reef-2", "font_big", "Nothing.")\ndialogStr("Nic.")\n'
    )
    clips = tmp_path / "share/games/fillets-ng/sound/reef/cs"
    clips.mkdir(parents=True)
    soundfile.write(clips / "reef-1.ogg", tone, 22050)

    def prepare(corpus: str, output: pathlib.Path, root: pathlib.Path) -> Any:
        return run_example("sentences/prepare.py", corpus, str(output), "--root", str(root))

    english, czech = tmp_path / "english", tmp_path / "czech"
    finished = prepare("asterisk", english, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "1 of 32 left out" in finished.stdout
    read = example("sentences.corpus").read_split
    of_splits = {split: read(english, split, 16000) for split in ("train", "dev", "test")}
    said = {split: {s.text for s in found} for split, found in of_splits.items()}
    assert sum(map(len, of_splits.values())) == 31
    assert not said["train"] & (said["dev"] | said["test"])
    assert not said["dev"] & said["test"]
    assert "ONE" in said["train"]
    for found in of_splits.values():
        assert all(math.isclose(s.seconds, 1.0) for s in found)
    finished = prepare("fillets", czech, tmp_path)
    assert finished.returncode == 0, finished.stderr
    (only,) = [s for split in czech.iterdir() for s in read(czech, split.name, 16000)]
    assert only.text == "CO JE TO"
    assert only.seconds == pytest.approx(8000 / 22050, abs=1e-3)
    finished = prepare("asterisk", english, tmp_path / "nowhere")
    assert finished.returncode == 1
    assert "apt-get install asterisk-core-sounds-en-wav" in finished.stderr
