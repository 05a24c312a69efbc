"""The spoken-words example runs from end to end, without any audio."""

import json
import math
import pathlib
import socket
import statistics
import subprocess
import sys
import wave
from typing import Any

import jax
import numpy as np
import pytest

from examples import EXAMPLES, example, run_example

for module in (
    "flax",
    "jiwer",
    "kaldi_native_fbank",
    "matplotlib",
    "optax",
    "orbax.checkpoint",
    "rich",
    "scipy",
    "soundfile",
    "tyro",
):
    pytest.importorskip(module, reason="needs the extra `examples`")

from flax import nnx  # noqa: E402

_TRAIN = "spoken_words/train.py"
_LISTEN = "spoken_words/listen.py"
# The Orbax that goes with older JAX cannot save what several devices hold.
_SAVES_MANY = jax.__version_info__ >= (0, 7)
_needs_many = pytest.mark.skipif(not _SAVES_MANY, reason="Orbax saves arrays of one device only")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


pytestmark = pytest.mark.usefixtures("programs_in_common")


def _run(*arguments: str, program: str = _TRAIN) -> subprocess.CompletedProcess[str]:
    return run_example(program, *arguments)


def _recognisers(output: pathlib.Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())["recognisers"]


def test_quick_synthetic_run_and_resume(tmp_path: pathlib.Path) -> None:
    quick = ("--quick", "--synthetic", "--output", str(tmp_path))
    first = _run(*quick, "--steps", "20")
    assert first.returncode == 0, first.stderr
    assert "Synthetic" in first.stdout
    before = _recognisers(tmp_path)

    # The checkpoints do not know of devices: whoever stopped on one may go on with four.
    resumed = _run(*quick, "--steps", "30", "--resume", "--devices", "4" if _SAVES_MANY else "1")

    assert resumed.returncode == 0, resumed.stderr
    recognisers = _recognisers(tmp_path)
    assert set(recognisers) == {"RNN-T", "multi-blank", "TDT"}
    for name, measured in recognisers.items():
        losses = measured["training_losses"]
        assert len(losses) == 30
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[:20] == before[name]["training_losses"]
        assert statistics.mean(losses[20:25]) < statistics.mean(losses[15:20])
        assert statistics.mean(losses[-5:]) < 0.8 * statistics.mean(losses[:5])
        assert measured["loss"] < before[name]["loss"]
        assert {*measured["searches"]} == {"greedy", "narrow beam"}
        for found in measured["searches"].values():
            low, high = found["interval"]
            assert low <= found["word_error_rate"] <= high
            assert found["joint_evaluations"] > 0
            assert len(found["hypotheses"]) == len(measured["references"])
    for picture in ("losses.png", "lattices.png"):
        assert (tmp_path / picture).read_bytes().startswith(_PNG_SIGNATURE)

    heard = _run(str(tmp_path / "unseen.wav"), "--quick", *quick[2:], program=_LISTEN)
    assert heard.returncode == 0, heard.stderr
    with wave.open(str(tmp_path / "unseen.wav")) as file:
        assert f"{file.getnframes() / file.getframerate():.2f} s of speech" in heard.stdout
    absent = _run("any.wav", "--output", str(tmp_path / "nowhere"), program=_LISTEN)
    assert absent.returncode == 1
    assert "train the recogniser with train.py" in absent.stderr


@pytest.mark.usefixtures("as_the_examples_run")
def test_pieces_are_encoded_as_the_whole() -> None:
    """What an encoder that looks in both directions hears around a chunk is enough, and needed."""
    listen, model, recipe = (
        example(f"spoken_words.{name}") for name in ("listen", "model", "recipe")
    )
    transducer = recipe.QUICK.transducers["TDT"]
    recogniser = model.Recogniser(recipe.QUICK, transducer, rngs=nnx.Rngs(0))
    encoder, chunk = recogniser.encoder, 8
    features = np.random.default_rng(0).normal(size=(157, 40)).astype(np.float32)
    frames = len(features) // 4
    whole = encoder.encode(features[None], np.ones((1, frames), bool))
    for begin in range(0, frames, chunk):
        reach = encoder.reach
        window, is_valid = listen.window_of(features, begin - reach, chunk + 2 * reach)
        encoded = encoder.encode(window, is_valid)[:, reach:-reach][:, : frames - begin]
        np.testing.assert_allclose(encoded, whole[:, begin : begin + chunk], rtol=0, atol=1e-5)
        less, is_valid = listen.window_of(features, begin - reach + 1, chunk + 2 * reach - 2)
        if begin - reach > 0 and begin + chunk + reach < frames:
            encoded = encoder.encode(less, is_valid)[:, reach - 1 : 1 - reach]
            assert not np.allclose(encoded, whole[:, begin : begin + chunk], rtol=0, atol=1e-5)


def test_chunked_joint_learns_the_same(tmp_path: pathlib.Path) -> None:
    curves = []
    quick = ("--quick", "--synthetic", "--only", "multi-blank", "--steps", "12")
    for flag in (("--all-logits",), ()):
        output = tmp_path / "".join(("run", *flag))
        finished = _run(*quick, "--output", str(output), *flag)
        assert finished.returncode == 0, finished.stderr
        recognisers = json.loads((output / "results.json").read_text())["recognisers"]
        curves.append({name: r["training_losses"] for name, r in recognisers.items()})
    whole, chunked = curves
    for name, losses in whole.items():
        assert chunked[name] == pytest.approx(losses, rel=1e-3)
        assert losses[-1] < 0.9 * losses[0]


def test_missing_recordings_name_the_package(tmp_path: pathlib.Path) -> None:
    finished = _run("--recordings", str(tmp_path / "nowhere"), "--output", str(tmp_path))

    assert finished.returncode == 1
    assert "apt-get install asterisk-core-sounds-en-wav" in finished.stderr
    assert "Traceback" not in finished.stderr


# ---- many devices, many processes --------------------------------------------------------

_FEW_STEPS = ("--quick", "--synthetic", "--only", "TDT", "--steps", "6")


def _run_processes(*arguments: str) -> list[tuple[str, str]]:
    """Two processes at once; their outputs and errors. They are ended, come what may."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, str(EXAMPLES / _TRAIN), *arguments, "--num-processes", "2"]
    command += ["--coordinator", coordinator, "--process-id"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(i)], **pipes) for i in range(2)]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def _assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every step's loss within 8 roundings of float32; only the order of the sums differs."""
    assert set(actual) == set(expected)
    for name in expected:
        for key in ("training_losses", "loss"):
            assert actual[name][key] == pytest.approx(expected[name][key], rel=1e-6, abs=0)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("one_device")
    finished = _run(*_FEW_STEPS, "--output", str(output))
    assert finished.returncode == 0, finished.stderr
    return _recognisers(output)


@_needs_many
def test_four_devices(tmp_path: pathlib.Path, on_one_device: dict[str, Any]) -> None:
    finished = _run(*_FEW_STEPS, "--output", str(tmp_path), "--devices", "4")
    assert finished.returncode == 0, finished.stderr
    _assert_same(_recognisers(tmp_path), on_one_device)


@_needs_many
def test_two_processes_and_resume(tmp_path: pathlib.Path, on_one_device: dict[str, Any]) -> None:
    """Of two devices each; the first one alone prints, and writes what is not a checkpoint."""
    arguments = (*_FEW_STEPS, "--output", str(tmp_path), "--devices", "2")
    (first, _), (second, _) = _run_processes(*arguments)
    assert "Pictures and results are in" in first
    assert "Pictures" not in second
    trained = _recognisers(tmp_path)
    _assert_same(trained, on_one_device)

    (tmp_path / "results.json").unlink()
    _run_processes(*arguments, "--resume")  # There is nothing left to train.
    restored = _recognisers(tmp_path)
    for name in trained:
        for key in ("training_losses", "loss"):
            assert restored[name][key] == trained[name][key]
        for how, found in trained[name]["searches"].items():
            assert restored[name]["searches"][how]["hypotheses"] == found["hypotheses"]


def test_devices_have_to_divide_the_batch(tmp_path: pathlib.Path) -> None:
    finished = _run(*_FEW_STEPS, "--output", str(tmp_path), "--devices", "3")
    assert finished.returncode == 1
    assert "expected a divisor of the batch's 16 utterances, got 3" in finished.stderr
    assert "Traceback" not in finished.stderr
