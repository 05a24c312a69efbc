"""The example's study: are errors and their intervals counted right, is no row made twice?

And parts that both examples share.
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import EXAMPLES, example

for module in ("flax", "jiwer", "matplotlib", "optax", "orbax.checkpoint", "rich", "scipy", "tyro"):
    pytest.importorskip(module, reason="needs the extra `examples`")

from rich.console import Console  # noqa: E402
from scipy import stats  # noqa: E402

pytestmark = pytest.mark.usefixtures("as_the_examples_run")


def test_errors_of_each_utterance() -> None:
    intervals = example("speech.intervals")
    said = ["one two three", "four five", "six", "seven eight"]
    heard = ["one too three", "four", "six six", "seven eight"]
    errors = intervals.word_errors(said, heard)
    np.testing.assert_array_equal(errors.words, [3, 2, 1, 2])
    np.testing.assert_array_equal(errors.substitutions, [1, 0, 0, 0])
    np.testing.assert_array_equal(errors.deletions, [0, 1, 0, 0])
    np.testing.assert_array_equal(errors.insertions, [0, 0, 1, 0])
    assert errors.rate == 3 / 8


def of_counts(intervals: Any, errors: np.ndarray) -> Any:
    """Utterances of 4 words with so many substitutions each."""
    zeros = np.zeros_like(errors)
    return intervals.WordErrors(np.full(len(errors), 4), errors, zeros, zeros)


def test_interval_of_a_rate() -> None:
    """Of one error at most in each utterance: as many of N utterances, which is binomial."""
    intervals, count = example("speech.intervals"), 800
    errors = of_counts(intervals, (np.arange(count) < 40).astype(int))
    low, high = intervals.rate_interval(errors)
    expected = stats.binom.ppf([0.025, 0.975], count, 40 / count) / (4 * count)
    np.testing.assert_allclose([low, high], expected, rtol=0.06)
    assert low < errors.rate < high


def test_interval_without_errors() -> None:
    intervals = example("speech.intervals")
    low, high = intervals.rate_interval(of_counts(intervals, np.zeros(250, int)))
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 1000), rel=1e-6)


def test_interval_of_a_difference_is_paired() -> None:
    intervals, rng = example("speech.intervals"), np.random.default_rng(0)
    common = rng.integers(0, 3, 400)
    few, many = of_counts(intervals, common), of_counts(intervals, common + 1)
    assert intervals.difference_interval(few, few) == (0, 0)
    low, high = intervals.difference_interval(many, few)
    assert low == high == 0.25  # one more in each, whatever the utterances: unpaired it is wide
    other = of_counts(intervals, rng.permutation(common))
    low, high = intervals.difference_interval(other, few)
    assert low < 0 < high


def test_jumps_before_errors() -> None:
    """The longest since the character before; before what was left out, that of the next one."""
    analysis, tdt = (
        example("spoken_words.analysis"),
        example("jax_mbrnnt").TDT(durations=(0, 1, 2, 4)),
    )
    arc_of = {(arc.duration, arc.emits): i for i, arc in enumerate(tdt.arcs)}

    class Tdt:
        transducer = tdt

    def way(*arcs: tuple[int, bool]) -> Any:
        return analysis.Path(np.empty(0), np.array([arc_of[arc] for arc in arcs]))

    blank = [(d, False) for d in range(5)]
    ways = [
        way((0, True), blank[4], blank[1], (2, True), blank[2]),  # a, then b after 4
        way(blank[2], (1, True), blank[4]),  # b after 2; c would come after 4
    ]
    found = analysis.longest_before(Tdt, ["ab", "abc"], ["ab", "b"], ways)
    assert found == {"equal": {0: 1, 2: 1, 4: 1}, "delete": {2: 1, 4: 1}}
    taken = analysis.arcs_taken(Tdt, ways)
    assert taken["blank 4"] == 1.0
    assert taken["label 0"] == taken["label 2"] == 0.5
    frames = [np.array([3, 5]), np.array([1])]
    assert analysis.delay(frames, [np.array([2, 5]), np.array([2])]) == 0


def test_rows_are_made_once(tmp_path: pathlib.Path) -> None:
    study, report, recordings = (
        example(f"spoken_words.{name}") for name in ("study", "study_report", "recordings")
    )
    recipe = dataclasses.replace(
        example("spoken_words.recipe").QUICK,
        **{"vocabulary": 4, "training_utterances": 16, "test_utterances": 8, "batch_size": 8},
        **{"width": 16, "dilations": (1,), "steps": 2, "checkpoint_every": 1},
    )
    words = dict(list(recordings.make_synthetic_recordings().items())[:4])
    sets = study.Sets(0, words, recipe)
    arms = example("spoken_words.arms").arms(recipe)
    assert len({*arms}) == len(arms) > 10
    one = study.Study(tmp_path, jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)))
    for name in ("RNN-T", "multi-blank of 2, 4"):
        assert not one.has(name, 0, times=False)
        one.train_and_measure(name, arms[name], 0, sets)
        assert one.has(name, 0, times=False)
        assert not one.has(name, 1, times=False)
        assert not one.has(name, 0, times=True)
    rows = one.rows(arm="multi-blank of 2, 4", what="easy test")
    assert len(rows) == 1
    assert {*rows[0]["decoding"]} == {"greedy", "beam", "narrow beam", "at most 2", "at most 1"}
    assert math.isfinite(rows[0]["delay"])
    assert one.rows(arm="RNN-T", what="easy test")[0]["delay"] == 0

    with (tmp_path / "printed.txt").open("w") as file:
        report.report(Console(file=file), tmp_path, one.rows())
    lines = (tmp_path / "study.md").read_text().splitlines()
    rnnt = report.point(one.rows(), "RNN-T", "easy", "greedy")
    assert rnnt.errors.words.sum() == sum(len(x.split()) for x in sets.tests["easy"].texts())
    assert any(
        line.startswith("| RNN-T |") and f"{100 * rnnt.errors.rate:.2f}" in line for line in lines
    )
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    assert len(one.rows()) == len((tmp_path / "study.jsonl").read_text().splitlines()) == 6
    assert all(json.dumps(row) for row in one.rows())


@pytest.mark.parametrize("name", ["multi-blank", "TDT"])
@pytest.mark.parametrize("chunked_joint", [False, True])
def test_steps_without_jumps(name: str, chunked_joint: bool) -> None:
    """As a transducer that has no others, of the classes that are left."""
    model, recipe = example("spoken_words.model"), example("spoken_words.recipe").QUICK
    classes = example("speech.classes")
    transducer = dataclasses.replace(recipe.transducers[name], fastemit_lambda=0.0)
    recogniser = model.Recogniser(recipe, transducer, rngs=example("flax.nnx").Rngs(0))
    rng = np.random.default_rng(0)
    batch = example("speech.batches").Batch(
        features=rng.normal(size=(2, 40, 40)).astype(np.float32),
        feature_lengths=np.array([40, 30], np.int32),
        labels=rng.integers(0, 27, (2, 5)).astype(np.int32),
        label_lengths=np.array([5, 3], np.int32),
    )
    assert not classes.jump_classes(recipe.transducers["RNN-T"], 28).any()
    jumps = classes.jump_classes(transducer, recogniser.output.out_features)
    assert jumps.sum() == {"multi-blank": 2, "TDT": 3}[name]
    logits, lengths = recogniser(batch)
    operands = batch.labels, lengths, batch.label_lengths
    expected = {
        "multi-blank": lambda x: example("jax_mbrnnt").rnnt_loss(x, *operands),
        "TDT": lambda x: example("jax_mbrnnt").tdt_loss(x, *operands, durations=(0, 1)),
    }[name](logits[..., ~jumps])

    def losses_with(may_jump: Any) -> jax.Array:
        options = {"may_jump": may_jump, "chunked_joint": chunked_joint}
        return recogniser.losses(batch, sigma_share=0.0, **options)

    losses = losses_with(False)
    some = losses_with(np.array([[True], [False]]))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    every = losses_with(True)
    assert np.all(every != losses)
    np.testing.assert_allclose(some, [every[0], losses[1]], rtol=1e-6)

    frames = rng.random((2, 10)) < 0.5
    masked = jnp.where(frames[:, :, None, None] | ~jumps, logits, -jnp.inf)
    at_some = dataclasses.replace(transducer, sigma=0.0)(masked, *operands)
    np.testing.assert_allclose(losses_with(frames), at_some, rtol=1e-5)


_COUNT_FAULTS = """
import resource, statistics, sys
import jax, jax.numpy as jnp
import speech.allocator

if sys.argv[1] == "keep":
    speech.allocator.keep_freed_memory()
x = jnp.ones((1 << 24,))
step = jax.jit(lambda x: x + 1)  # 64 MiB: more than glibc ever keeps by itself
faults = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median_low(faults[20:]))  # before, the heap grows to what it needs
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_step_finds_its_memory_again() -> None:
    """Pages that a step of 64 MiB has to map anew: next to none where memory is kept."""

    def faults(how: str) -> int:
        command = [sys.executable, "-c", _COUNT_FAULTS, how]
        environment = os.environ | {"PYTHONPATH": str(EXAMPLES), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 100 < faults("leave")


def test_a_step_is_looked_at_behind_the_next_one() -> None:
    seen: list[int] = []
    steps = example("speech.steps").Steps(seen.append)
    steps.wait()
    assert seen == []
    for step in range(1, 4):
        steps.started(step)
        assert seen == [*range(1, step)]
    for _ in range(2):
        steps.wait()
        assert seen == [1, 2, 3]
