"""Decoding of each transducer beside other searches, whole and by chunks, in one run.

    python benchmarks/decoding.py [--quick] [--out FILE]

The networks cost what real ones cost, but what the joint answers is laid down. Labels are due at
random frames; it answers with them where they are, with a blank elsewhere, and each time with the
longest duration that ends before the next one: as a model does that has learnt its durations
perfectly, and is sure of every label. So the evaluations saved are the most that these durations
can save, and are the durations' doing, not the implementation's.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import decoding_rivals as rivals
from jax_mbrnnt import GreedyStream, Transducer, beam_decode, greedy_decode
from machine import machine
from programs import MULTIBLANK, RNNT, TDT_0_TO_4
from timing import Call, interleave

CLASSES = 1024
CHUNK = 20  # frames, of a stream
BEAM = 4
FRAME_SECONDS = 0.04
TRANSDUCERS: dict[str, Transducer] = {
    "RNN-T": RNNT.ours,
    "multi-blank": MULTIBLANK.ours,
    "TDT, 0 to 4": TDT_0_TO_4.ours,
}
Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch of utterances and the networks that recognise it."""

    network: str  # "LSTM" or "stateless": the prediction network
    batch: int
    frames: int = 250
    hidden: int = 640
    every: float = 250 / 30  # frames a label
    shortest: float = 1.0  # utterance, as a part of the longest

    @property
    def lengths(self) -> np.ndarray:
        """Evenly spread, the longest first."""
        return np.linspace(self.frames, self.shortest * self.frames, self.batch).astype(int)

    def due(self) -> np.ndarray:
        """`[B, T]`, where labels are: as many everywhere, but at random."""
        rng, due = np.random.default_rng(0), np.zeros((self.batch, self.frames), bool)
        for row, length in zip(due, self.lengths, strict=True):
            row[rng.choice(length, round(length / self.every), replace=False)] = True
        return due

    def params(self) -> Params:
        shapes = {"embedding": (CLASSES, self.hidden), "project": (self.hidden, self.hidden)}
        if self.network == "LSTM":
            shapes |= {"input": (self.hidden, 4 * self.hidden)}
            shapes |= {"recurrent": (self.hidden, 4 * self.hidden)}
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return {
            name: jax.random.normal(key, shape) / self.hidden**0.5
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    @property
    def initial_state(self) -> Any:
        memory = jnp.zeros((self.batch, self.hidden))
        count = jnp.full(self.batch, -1)
        return ((memory, memory) if self.network == "LSTM" else memory), count

    def predict(self, params: Params, labels: jax.Array, state: Any) -> tuple[Any, Any]:
        """Predictions are vectors, and how many labels there were; the start is none."""
        memory, count = state
        embedded = params["embedding"][labels]
        if self.network == "LSTM":
            hidden, cell = memory
            gates = embedded @ params["input"] + hidden @ params["recurrent"]
            enter, forget, leave, new = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden @ params["project"], count + 1), ((hidden, cell), count + 1)
        hidden = jnp.tanh(embedded + memory)  # of the last two labels
        return (hidden @ params["project"], count + 1), (embedded, count + 1)


class Task:
    """A case for one transducer: its joint, and the searches."""

    def __init__(self, case: Case, transducer: Transducer) -> None:
        self.case, self.transducer = case, transducer
        self.scores = 2 * CLASSES - transducer.emission(CLASSES).num_labels
        self.emission = transducer.emission(self.scores)
        self.start = self.emission.blanks[0]
        kernel = jax.random.normal(jax.random.key(1), (case.hidden, self.scores))
        self.params = case.params() | {"kernel": kernel / case.hidden**0.5}
        due = case.due()
        # Frames from each to the next label or the end, so 0 where one is due; labels till then.
        gap = np.zeros((case.batch, case.frames + 1), np.int32)
        for t in reversed(range(case.frames)):
            going = t < case.lengths
            gap[:, t] = np.where(due[:, t], 0, np.where(going, gap[:, t + 1] + 1, 0))
        encoded = np.array(jax.random.normal(jax.random.key(2), (*due.shape, case.hidden)))
        encoded[..., 0] = gap[:, 1:] + 1  # the same, once this frame's own label is out
        encoded[..., 1] = np.cumsum(due, axis=1)
        self.encoded, self.lengths = jnp.asarray(encoded), jnp.asarray(case.lengths)
        self.due = due

    def joint(self, params: Params, frame: jax.Array, prediction: Any) -> jax.Array:
        """One product of real size; then what is laid down, without any doubt."""
        vector, emitted = prediction
        logits = jnp.tanh(frame + vector) @ params["kernel"]
        after, count = frame[:, 0, None], frame[:, 1]
        arcs = self.transducer.arcs
        durations = np.array([arc.duration for arc in arcs])
        emits = np.array([arc.emits for arc in arcs])
        # Where the classes that arcs read by their numbers stand, and which arcs read each.
        reads = np.array(self.emission.reads)
        read = np.where(reads >= 0, reads + np.cumsum((0, *self.emission.heads[:-1])), -1)
        places = np.unique(read[reads >= 0])
        assert places[-1] - places[0] + 1 == len(places)
        readers = (read == places[:, None, None]).any(axis=-1)
        speaks = (emitted < count)[:, None]
        worth = jnp.where(
            (emits == speaks) & (durations <= after), 100.0 + 10.0 * durations, -100.0
        )
        of_classes = jnp.where(readers, worth[:, None], -100.0).max(axis=-1)
        before, behind = logits[:, : places[0]], logits[:, places[-1] + 1 :]
        label = (emitted % places[0])[:, None]
        before = jnp.where(jnp.arange(places[0]) == label, before + 50.0, before)
        return jnp.concatenate([before, of_classes, behind], axis=1)

    # ---- searches: a function of the parameters, the frames and the lengths -----------------

    @property
    def _options(self) -> dict[str, Any]:
        return {"initial_state": self.case.initial_state, "max_labels": self.case.frames}

    def ours(self, params: Params, encoded: jax.Array, lengths: jax.Array, **options: Any) -> Any:
        functions = (functools.partial(f, params) for f in (self.joint, self.case.predict))
        options = self._options | options
        return greedy_decode(self.transducer, *functions, encoded, lengths, **options)

    def beam(self, params: Params, encoded: jax.Array, lengths: jax.Array) -> Any:
        """The best hypothesis alone."""
        functions = (functools.partial(f, params) for f in (self.joint, self.case.predict))
        options = self._options | {"beam": BEAM}
        found = beam_decode(self.transducer, *functions, encoded, lengths, **options)
        return found._replace(frames=found.frames[:, 0])

    def rival(self, search: Any, params: Params, encoded: jax.Array, lengths: jax.Array) -> Any:
        functions = (functools.partial(f, params) for f in (self.joint, self.case.predict))
        arcs = rivals.arcs_of(self.transducer, self.scores)
        rest = self.case.initial_state, self.start, self.case.frames
        return search(arcs, *functions, encoded, lengths, *rest)

    def whole(self, search: Callable[..., Any]) -> Call:
        operands = self.params, self.encoded, self.lengths
        program = jax.jit(search).lower(*operands).compile()
        self.check(program(*operands))
        return Call(program, lambda: operands)

    def stream(self, is_empty: bool = False, **options: Any) -> Call:
        """By chunks; making them is the encoder's work. Labels stay on the device.

        `is_empty`: programs that only take and return what those of the search do, which is what
        JAX's calls cost.
        """

        def stream(params: Params) -> GreedyStream:
            functions = (functools.partial(f, params) for f in (self.joint, self.case.predict))
            how = self._options | {"max_labels": None} | options
            return GreedyStream(self.transducer, *functions, **how)

        def step(params: Params, *rest: Any) -> Any:
            return stream(params).step(*rest)

        frames = self.case.frames
        chunks = [
            (
                jnp.pad(x, ((0, 0), (0, CHUNK - x.shape[1]), (0, 0))),
                jnp.clip(self.lengths - i, 0, CHUNK),
            )
            for i in range(0, frames, CHUNK)
            for x in [self.encoded[:, i : i + CHUNK]]
        ]
        init = jax.jit(lambda params: stream(params).init(self.case.batch))
        carry = init(self.params)
        program = jax.jit(step, donate_argnums=1)  # whose calls cost less than a compiled one's

        def run(program: Any, carry: Any) -> list[Any]:
            found = []
            for chunk in chunks:
                heard, carry = program(self.params, carry, *chunk)
                found.append(heard)
            return found

        found = jax.device_get(run(program, carry))
        last = found[-1]
        self.check(
            last._replace(
                label_lengths=sum(x.label_lengths for x in found),
                frames=np.concatenate([x.frames for x in found], axis=1),
                joint_rows=sum(x.joint_rows for x in found),
                prediction_steps=sum(x.prediction_steps for x in found),
            )
        )
        if is_empty:  # takes and returns as much
            like = jax.tree.map(np.zeros_like, found[0])
            self.found = like
            program = jax.jit(
                lambda params, carry, *chunk: (jax.tree.map(jnp.asarray, like), carry),
                donate_argnums=1,
            )
        return Call(functools.partial(run, program), lambda: (init(self.params),))

    def check(self, found: Any) -> None:
        """Every search must say each label at its frame; else they are not comparable."""
        for b in range(self.case.batch):
            frames = np.asarray(found.frames[b])
            expected = np.flatnonzero(self.due[b])
            np.testing.assert_array_equal(frames[frames >= 0], expected)
        self.found = found


# ---- What is run ----------------------------------------------------------------------------

BEFORE, OLDER, STREAMED = "before", "frame by frame", f", by {CHUNK} frames"
SEARCHED = f", beam {BEAM}"


def builders(case: Case) -> dict[str, Callable[[], tuple[Task, Call]]]:
    """The rows of a case's table. A further search is a line here."""
    tasks = {name: functools.partial(Task, case, x) for name, x in TRANSDUCERS.items()}

    def whole(name: str, search: Any = None, **options: Any) -> tuple[Task, Call]:
        task = tasks[name]()
        ours = functools.partial(task.ours, **options)
        return task, task.whole(ours if search is None else functools.partial(task.rival, search))

    def beam(name: str) -> tuple[Task, Call]:
        task = tasks[name]()
        return task, task.whole(task.beam)

    def stream(name: str, **options: Any) -> tuple[Task, Call]:
        task = tasks[name]()
        return task, task.stream(**options)

    of = functools.partial
    rows = {f"RNN-T, {BEFORE}": of(whole, "RNN-T", rivals.one_at_a_time)}
    rows |= {f"multi-blank, {BEFORE}": of(whole, "multi-blank", rivals.one_at_a_time)}
    if case.shortest == 1.0:
        rows |= {f"multi-blank, {OLDER}": of(whole, "multi-blank", rivals.frame_by_frame)}
    rows |= {name: of(whole, name) for name in TRANSDUCERS}
    half = {"lanes": case.batch // 2}
    in_lanes = {name: f"{name}, {half['lanes']} lanes" for name in TRANSDUCERS if case.batch > 1}
    rows |= {row: of(whole, name, **half) for name, row in in_lanes.items()}
    if case.shortest == 1.0:
        rows |= {name + SEARCHED: of(beam, name) for name in TRANSDUCERS}
        rows |= {name + STREAMED: of(stream, name) for name in TRANSDUCERS}
        rows |= {"as many empty calls": of(stream, "RNN-T", is_empty=True)}
        rows |= {row + STREAMED: of(stream, name, **half) for name, row in in_lanes.items()}
    return rows


# Over "RNN-T, before" of the same case, at least; to be read beside the ratios.
GOALS = {
    ("LSTM", 1, "RNN-T"): 4.5,
    ("LSTM", 16, "RNN-T"): 4.5,
    ("stateless", 1, "RNN-T"): 1.8,
    ("LSTM", 1, "multi-blank"): 6.5,
    ("LSTM", 16, "multi-blank"): 6.0,
    ("stateless", 1, "multi-blank"): 3.8,
}
# Over the greedy search of the whole utterance, at most.
OVER_GREEDY = {STREAMED: 1.05, SEARCHED: 2.5}


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case("LSTM", 1, 60, 64), Case("stateless", 4, 60, 64, shortest=0.1)]
    full = [Case(network, batch) for network in ("LSTM", "stateless") for batch in (1, 16)]
    return [*full, Case("LSTM", 16, shortest=0.1)]


def table(case: Case, quick: bool) -> list[str]:
    built = {name: build() for name, build in builders(case).items()}
    interleave({name: call for name, (_, call) in built.items()}, 0.3 if quick else 12, (3, 30))
    lengths = "" if case.shortest == 1 else f" of {case.lengths[-1]} to {case.frames} frames"
    what = f"{case.network}, B = {case.batch}{lengths}"
    head = f"{'ms/utterance':>14}{'RTF':>9}{'speed':>8}{'goal':>7}"
    head += f"{'nodes':>8}{'joint rows':>12}{'predictions':>13}"
    lines = [f"  {what:32}{head}"]
    base, medians = None, {}
    for name, (task, call) in built.items():
        found = jax.device_get(task.found)
        ms = float(np.median(call.milliseconds)) / case.batch
        base = base or ms
        seconds = FRAME_SECONDS * case.lengths.mean()
        goal = GOALS.get((case.network, case.batch, name)) if case.shortest == 1 else None
        mean = [
            float(np.mean(x))
            for x in (found.joint_evaluations, found.joint_rows, found.prediction_steps)
        ]
        line = f"  {name:32}{ms:14.3f}{ms / 1e3 / seconds:9.5f}{base / ms:8.2f}"
        line += f"{goal or '':>7}{mean[0]:8.1f}{mean[1]:12.1f}{mean[2]:13.1f}"
        for suffix, at_most in OVER_GREEDY.items():
            if name.endswith(suffix):
                ratio = ms / medians[name.removesuffix(suffix)]
                line += f"   {ratio:.2f} of greedy's, goal {at_most}"
        medians[name] = ms
        lines.append(line)
    return lines


def run(quick: bool) -> list[str]:
    first = cases(quick)[0]
    lines = [
        f"Decoding, T = {first.frames} frames of 40 ms, a label every {first.every:.1f} on "
        f"average, at random; V = {CLASSES},",
        f"joint of one {first.hidden} x {CLASSES} product, prediction network an LSTM of "
        f"{first.hidden} or stateless (the last two labels),",
        f'both with a projection. Speed: over "RNN-T, {BEFORE}", which is a joint and a prediction '
        "a turn; nodes,",
        "rows and predictions are of an utterance, needed or not; "
        f'"{OLDER}": the batch waits for its shortest jump.',
        "Assumed: each time the longest duration that ends before the next label.",
    ]
    for case in cases(quick):
        lines += table(case, quick)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller, to see it run")
    parser.add_argument("--out", type=pathlib.Path, help="a file for what is printed")
    arguments = parser.parse_args()
    text = "\n".join([*machine(), "", *run(arguments.quick)]) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
