"""Trains recognisers of many kinds and seeds, and measures where they err and how fast they are.

Each training and each measurement is a row of `study.jsonl`, appended when it is there. What has a
row is not done again: stop it at any time, and run it again to go on. Several may run at once, each
with other seeds or arms; do not measure times then.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from speech import devices
from spoken_words.analysis import arcs_taken, delay, longest_before, paths
from spoken_words.arms import Arm, arms
from spoken_words.evaluation import (
    BEAMS,
    Recognition,
    count_beam_errors,
    decoding_times,
    recognise,
    recognise_with_beam,
)
from spoken_words.features import Bucket, make_bucket, make_buckets
from spoken_words.model import Recogniser
from spoken_words.recipe import FULL, QUICK, Recipe
from spoken_words.recordings import (
    DEBIAN_DIRECTORY,
    Recordings,
    RecordingsNotFoundError,
    choose_recordings,
)
from spoken_words.study_report import report
from spoken_words.training import load, train
from spoken_words.utterances import HARD, make_sets, make_utterances

console = Console()


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains recognisers of many kinds and seeds, and measures where and how fast they err."""

    arms: tuple[str, ...] = ()
    """These alone; all of them if none is named. --list shows their names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the utterances, parameters, batches and noise."""
    times: bool = False
    """Measure decoding times, of what is trained; do this on an idle machine."""
    list: bool = False
    """Name the arms, and how many of their rows there are."""
    recordings: pathlib.Path = DEBIAN_DIRECTORY
    """Directory of the recorded prompts (digits/*.wav, phonetic/*.wav)."""
    synthetic: bool = False
    """Use made-up words of tones instead of recordings. This is not speech."""
    quick: bool = False
    """A smaller task and smaller recognisers, to see it run."""
    output: pathlib.Path = pathlib.Path("spoken_words_study")
    """Directory for study.jsonl, checkpoints, the table and the picture."""


def main(options: Options) -> None:
    """Fills in what is missing, and reports."""
    recipe = QUICK if options.quick else FULL
    all_arms = arms(recipe)
    unknown = set(options.arms) - set(all_arms)
    if unknown:
        sys.exit(f"--arms: expected some of {list(all_arms)}, got {sorted(unknown)}")
    study = Study(options.output.resolve(), devices.make_mesh(1, None, None, None))
    if options.list:
        for name in all_arms:
            console.print(f"{len(study.rows(arm=name)):4} rows: {name}")
        return
    chosen = {name: all_arms[name] for name in options.arms or all_arms}
    recordings: Recordings | None = None
    for seed in options.seeds:
        missing = [name for name in chosen if not study.has(name, seed, options.times)]
        if not missing:
            continue
        if recordings is None:
            recordings = choose_recordings(options.recordings, options.synthetic, recipe.vocabulary)
        with console.status(f"Utterances of seed {seed}"):
            sets = Sets(seed, recordings, recipe)
        for name in missing:
            console.print(f"seed {seed}: {name}")
            if options.times:
                study.measure_times(name, chosen[name], seed, sets)
            else:
                study.train_and_measure(name, chosen[name], seed, sets)
    report(console, study.output, study.rows())


class Sets:
    """The utterances of a seed: to train on, to test with, and to test with under noise."""

    def __init__(self, seed: int, recordings: Recordings, recipe: Recipe):
        training_set, test_set = make_sets(seed, recordings, recipe)
        self.training: Sequence[Bucket] = make_buckets(training_set, recipe.buckets)
        rng = np.random.default_rng((seed, 1))
        heard = {utterance.words for utterance in training_set}
        hard = make_utterances(
            rng, recordings, recipe.test_utterances, recipe.words_per_utterance, heard, HARD
        )
        self.tests = {"easy": make_bucket(test_set), "hard": make_bucket(hard)}


class Study:
    """The rows that there are, and how more of them are made."""

    def __init__(self, output: pathlib.Path, mesh: Mesh):
        self.output = output
        self.mesh = mesh
        self.file = output / "study.jsonl"

    def rows(self, **values: Any) -> list[dict[str, Any]]:
        """Those that have these values."""
        if not self.file.is_file():
            return []
        rows = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [row for row in rows if values.items() <= row.items()]

    def has(self, arm: str, seed: int, times: bool) -> bool:
        return bool(self.rows(arm=arm, seed=seed, what="times" if times else "errors"))

    def _append(self, row: dict[str, Any]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _checkpoints(self, arm: str, seed: int) -> pathlib.Path:
        return self.output / "checkpoints" / f"{arm.replace(',', '').replace(' ', '_')}_{seed}"

    def train_and_measure(self, name: str, arm: Arm, seed: int, sets: Sets) -> None:
        """Appends the rows of an arm: of each test and each way of decoding, then of all of it."""
        start = time.perf_counter()
        recogniser, losses = train(
            *(arm.recipe, arm.transducer, sets.training, seed, self._checkpoints(name, seed)),
            self.mesh,
            lambda step, loss: None,
        )
        trained = time.perf_counter()
        batch_size = arm.recipe.batch_size
        for test, bucket in sets.tests.items():
            greedy = recognise(recogniser, bucket, batch_size)
            found = {"greedy": greedy} | {
                name: recognise_with_beam(recogniser, bucket, batch_size, **options)
                for name, options in BEAMS.items()
            }
            found |= {
                f"at most {longest}": recognise(recogniser, bucket, batch_size, longest)
                for longest in arm.shorter
            }
            worse = count_beam_errors(recogniser, bucket, batch_size, greedy, found["beam"])
            self._append(
                {"arm": name, "seed": seed, "what": f"{test} test", "beam_errors": worse}
                | {"words": "".join(map(str, greedy.errors.words))}
                | {"decoding": {how: _summary(of) for how, of in found.items()}}
                | self._analysis(name, seed, recogniser, bucket, batch_size, greedy, test)
            )
        seconds = {"training_seconds": trained - start, "last_loss": float(np.mean(losses[-20:]))}
        self._append({"arm": name, "seed": seed, "what": "errors"} | seconds)

    def _analysis(
        self,
        name: str,
        seed: int,
        recogniser: Recogniser,
        bucket: Bucket,
        batch_size: int,
        greedy: Recognition,
        test: str,
    ) -> dict[str, Any]:
        ways = paths(recogniser, bucket, batch_size)
        own = paths(recogniser, bucket.saying(greedy.labels), batch_size)
        before = longest_before(recogniser, greedy.references, greedy.hypotheses, own)
        row = {"arcs": arcs_taken(recogniser, ways), "longest_before": before}
        # Frames of the RNN-T with as many steps and the same utterances, to compare with.
        frames = self.output / "frames" / f"{seed}_{test}.npz"
        if name == "RNN-T":
            frames.parent.mkdir(parents=True, exist_ok=True)
            np.savez(frames, *(way.frames for way in ways))
        if frames.is_file():
            with np.load(frames) as file:
                row["delay"] = delay([way.frames for way in ways], list(file.values()))
        return row

    def measure_times(self, name: str, arm: Arm, seed: int, sets: Sets) -> None:
        """Appends a row of decoding times, of an arm that is trained."""
        recogniser = load(arm.recipe, arm.transducer, self._checkpoints(name, seed))
        row: dict[str, Any] = {"arm": name, "seed": seed, "what": "times"}
        for size in (1, 16):
            row[f"B={size}"] = decoding_times(recogniser, sets.tests["easy"], size, BEAMS)
        self._append(row)


def _summary(found: Recognition) -> dict[str, Any]:
    errors = found.errors
    wrong = np.flatnonzero(errors.total)
    return {
        "joint_evaluations": float(found.joint_evaluations.mean()),
        # Utterance, substitutions, deletions, insertions, of those that are not right.
        "errors": np.stack([wrong, *(x[wrong] for x in errors[1:])], axis=1).tolist(),
        "wrong": [[found.references[i], found.hypotheses[i]] for i in wrong[:20]],
    }


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
    except RecordingsNotFoundError as error:
        sys.exit(str(error))
