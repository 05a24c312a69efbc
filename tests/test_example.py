"""The spoken-words example runs from end to end, without any audio."""

import json
import math
import pathlib
import statistics
import subprocess
import sys

import pytest

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

_TRAIN = pathlib.Path(__file__).parents[1] / "examples" / "spoken_words" / "train.py"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_TRAIN), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_quick_synthetic_run_and_resume(tmp_path: pathlib.Path) -> None:
    quick = ("--quick", "--synthetic", "--output", str(tmp_path))
    first = _run(*quick, "--steps", "20")
    assert first.returncode == 0, first.stderr
    assert "Synthetic" in first.stdout
    before = json.loads((tmp_path / "results.json").read_text())["recognisers"]

    resumed = _run(*quick, "--steps", "30", "--resume")

    assert resumed.returncode == 0, resumed.stderr
    recognisers = json.loads((tmp_path / "results.json").read_text())["recognisers"]
    assert set(recognisers) == {"RNN-T", "multi-blank"}
    for name, measured in recognisers.items():
        losses = measured["training_losses"]
        assert len(losses) == 30
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[:20] == before[name]["training_losses"]
        assert statistics.mean(losses[20:25]) < statistics.mean(losses[15:20])
        assert statistics.mean(losses[-5:]) < 0.8 * statistics.mean(losses[:5])
        assert measured["loss"] < before[name]["loss"]
        assert measured["joint_evaluations"] > 0
    for picture in ("losses.png", "lattices.png"):
        assert (tmp_path / picture).read_bytes().startswith(_PNG_SIGNATURE)


def test_chunked_joint_learns_the_same(tmp_path: pathlib.Path) -> None:
    curves = []
    for flag in ((), ("--chunked-joint",)):
        output = tmp_path / "".join(("run", *flag))
        finished = _run("--quick", "--synthetic", "--steps", "12", "--output", str(output), *flag)
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
