"""Decoding of each transducer beside other searches, whole and by chunks, in one run.

The networks cost what real ones cost, but what the joint answers is laid down. Labels are due at
random frames; it answers with them where they are, with a blank elsewhere, and each time with the
longest duration that ends before the next one: as a model does that has learnt its durations
perfectly, and is sure of every label. So the evaluations saved are the most that these durations
can save, and are the durations' doing, not the implementation's.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt import GreedyStream, Transducer, beam_decode, greedy_decode

from . import searches
from .problems import KINDS, RNNT, SHAPES
from .results import Ratio, Report, Row, lines_of_ratios, table
from .timing import Call, interleave

SHAPE = SHAPES["decoding"]
CLASSES = SHAPE.V
CHUNK = 20  # frames, of a stream
BEAM = 4
FRAME_SECONDS = 0.04
Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch of utterances and the networks that recognise it."""

    network: str  # "LSTM" or "stateless": the prediction network
    batch: int
    frames: int = SHAPE.T
    hidden: int = 640
    every: float = SHAPE.T / SHAPE.U  # frames a label
    shortest: float = 1.0  # utterance, as a part of the longest

    @property
    def name(self) -> str:
        lengths = "" if self.shortest == 1 else f", {self.lengths[-1]} to {self.frames} frames"
        return f"{self.network}{lengths}"

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

    def functions(self, params: Params) -> list[Callable[..., Any]]:
        return [functools.partial(f, params) for f in (self.joint, self.case.predict)]

    def ours(self, params: Params, encoded: jax.Array, lengths: jax.Array, **options: Any) -> Any:
        options = self._options | options
        return greedy_decode(self.transducer, *self.functions(params), encoded, lengths, **options)

    def beam(self, params: Params, encoded: jax.Array, lengths: jax.Array) -> Any:
        """The best hypothesis alone."""
        options = self._options | {"beam": BEAM}
        found = beam_decode(self.transducer, *self.functions(params), encoded, lengths, **options)
        return found._replace(frames=found.frames[:, 0])

    def rival(self, search: Any, params: Params, encoded: jax.Array, lengths: jax.Array) -> Any:
        arcs = searches.arcs_of(self.transducer, self.scores)
        networks = searches.Networks(arcs, *self.functions(params), self.start)
        return search(networks, encoded, lengths, self.case.initial_state, self.case.frames)

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
            how = self._options | {"max_labels": None} | options
            return GreedyStream(self.transducer, *self.functions(params), **how)

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

    def whole(name: str, search: Any = None, **options: Any) -> tuple[Task, Call]:
        task = Task(case, KINDS[name].ours)
        ours = functools.partial(task.ours, **options)
        return task, task.whole(ours if search is None else functools.partial(task.rival, search))

    def beam(name: str) -> tuple[Task, Call]:
        task = Task(case, KINDS[name].ours)
        return task, task.whole(task.beam)

    def stream(name: str, **options: Any) -> tuple[Task, Call]:
        task = Task(case, KINDS[name].ours)
        return task, task.stream(**options)

    of = functools.partial
    rows = {
        f"{name}, {BEFORE}": of(whole, name, searches.one_at_a_time)
        for name in ("RNN-T", "multi-blank")
    }
    if case.shortest == 1.0:
        rows |= {f"multi-blank, {OLDER}": of(whole, "multi-blank", searches.frame_by_frame)}
    rows |= {name: of(whole, name) for name in KINDS}
    half = {"lanes": case.batch // 2}
    in_lanes = {name: f"{name}, {half['lanes']} lanes" for name in KINDS if case.batch > 1}
    rows |= {row: of(whole, name, **half) for name, row in in_lanes.items()}
    if case.shortest == 1.0:
        rows |= {name + SEARCHED: of(beam, name) for name in KINDS}
        rows |= {name + STREAMED: of(stream, name) for name in KINDS}
        rows |= {"as many empty calls": of(stream, RNNT.name, is_empty=True)}
        rows |= {row + STREAMED: of(stream, name, **half) for name, row in in_lanes.items()}
    return rows


# Of the speed over "RNN-T, before" of the same case, at least; to be read beside the ratios.
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
COUNTS = {
    "nodes": "joint_evaluations",
    "joint rows": "joint_rows",
    "predictions": "prediction_steps",
}


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case("LSTM", 1, 60, 64), Case("stateless", 4, 60, 64, shortest=0.1)]
    full = [Case(network, batch) for network in ("LSTM", "stateless") for batch in (1, SHAPE.B)]
    return [*full, Case("LSTM", SHAPE.B, shortest=0.1)]


def measure(case: Case, quick: bool) -> list[Row]:
    """Times and counts are of a batch, counts the mean of its utterances."""
    built = {name: build() for name, build in builders(case).items()}
    interleave({name: call for name, (_, call) in built.items()}, 0.3 if quick else 12, (3, 30))
    labels = round(case.frames / case.every)
    where = {"B": case.batch, "T": case.frames, "U": labels, "V": CLASSES, "case": case.name}
    rows = []
    for name, (task, call) in built.items():
        rows.append(Row.of_call(name, call, **where))
        found = jax.device_get(task.found)
        for quantity, attribute in COUNTS.items():
            rows.append(Row(name, quantity, float(np.mean(getattr(found, attribute))), **where))
    return rows


def lines_of_case(case: Case, rows: list[Row]) -> Iterator[str]:
    by_name: dict[str, dict[str, float]] = {}
    for row in rows:
        by_name.setdefault(row.program, {})[row.quantity] = row.median
    base = next(iter(by_name.values()))["ms"]

    def cells(name: str, of: dict[str, float]) -> list[object]:
        ms = of["ms"] / case.batch
        seconds = FRAME_SECONDS * case.lengths.mean()
        goal = GOALS.get((case.network, case.batch, name), "") if case.shortest == 1 else ""
        speed = [f"{ms:.3f}", f"{ms / 1e3 / seconds:.5f}", f"{base / of['ms']:.2f}", goal]
        return [name, *speed, *(f"{of[quantity]:.1f}" for quantity in COUNTS)]

    head = [f"{case.name}, B = {case.batch}", "ms/utterance", "RTF", "speed", "goal", *COUNTS]
    yield from table(head, (cells(name, of) for name, of in by_name.items()))
    ratios = [
        Ratio(f"{name} / whole and greedy", name, [name.removesuffix(suffix)], goal)
        for name in by_name
        for suffix, goal in OVER_GREEDY.items()
        if name.endswith(suffix)
    ]
    yield from ["", *lines_of_ratios(rows, ratios), ""] if ratios else [""]


def run(report: Report, arguments: argparse.Namespace) -> None:
    chosen = cases(arguments.quick)
    first = chosen[0]
    report.say(
        f"T = {first.frames} frames of 40 ms, a label every {first.every:.1f} on average, at",
        f"random; V = {CLASSES}, joint of one {first.hidden} x {CLASSES} product, prediction",
        f"network an LSTM of {first.hidden} or stateless (the last two labels), both with a",
        f'projection. Speed: over "RNN-T, {BEFORE}", which is a joint and a prediction a turn;',
        "nodes, rows and predictions are of an utterance, needed or not;",
        f'"{OLDER}": the batch waits for its shortest jump.',
        "",
    )
    for case in chosen:
        rows = measure(case, arguments.quick)
        report.add(rows)
        report.say(*lines_of_case(case, rows))
