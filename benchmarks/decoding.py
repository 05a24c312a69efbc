"""Greedy decoding: utterances a second and evaluations of the joint, of each transducer.

    python benchmarks/decoding.py [--quick]        cpu.py does this, too

The joint is synthetic: it costs what a real one costs, but what it answers is laid down. Labels are
due at random frames; it answers with them where they are, with a blank elsewhere, and each time
with the longest duration that ends before the next one: as a model does that has learnt its
durations perfectly. So the evaluations saved are the most that these durations can save, and are
the durations' doing, not the implementation's.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt import Transducer, greedy_decode
from programs import MULTIBLANK, RNNT, TDT_0_TO_4
from timing import Call, interleave

BATCH, FRAMES, HIDDEN, CLASSES = 16, 400, 256, 512
EVERY = 6  # frames a label, on average
TRANSDUCERS: dict[str, Transducer] = {
    "RNN-T": RNNT.ours,
    "multi-blank": MULTIBLANK.ours,
    "TDT, 0 to 4": TDT_0_TO_4.ours,
}


def make_decoder(transducer: Transducer, due: np.ndarray) -> tuple[Any, tuple[Any, ...]]:
    """`decode(parameters, encoded)` and its operands; `due` `[B, T]` says where labels are."""
    batch, frames = due.shape
    # Frames from each to the next label or the end, so 0 where one is due; and labels till then.
    gap = np.zeros((batch, frames + 1), np.int32)
    for t in reversed(range(frames)):
        gap[:, t] = np.where(due[:, t], 0, gap[:, t + 1] + 1)
    after = gap[:, 1:] + 1  # the same, once this frame's own label is out
    count = np.cumsum(due, axis=1)
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (batch, frames, HIDDEN))
    schedule = jnp.asarray(np.stack([after, count], axis=-1), jnp.float32)
    encoded = jnp.concatenate([features, schedule], axis=-1)
    scores = 2 * CLASSES - transducer.emission(CLASSES).num_labels  # CLASSES in the first head
    parameters = (
        jax.random.normal(keys[1], (HIDDEN, scores)) / HIDDEN**0.5,
        jax.random.normal(keys[2], (CLASSES, HIDDEN)),
    )
    emission, arcs = transducer.emission(scores), transducer.arcs
    blank = emission.blanks[0]
    durations = np.array([arc.duration for arc in arcs])
    emits = np.array([arc.emits for arc in arcs])
    # Where the classes that arcs read by their numbers stand in a row, and which arcs read each.
    reads = np.array(emission.reads)
    read = np.where(reads >= 0, reads + np.cumsum((0, *emission.heads[:-1])), -1)
    places = np.unique(read[reads >= 0])
    readers = (read == places[:, None, None]).any(axis=-1)

    def decode(parameters, encoded):
        kernel, embedding = parameters

        def joint(frame, prediction):
            embedded, emitted = prediction
            logits = jnp.tanh(frame[:, :HIDDEN] + embedded) @ kernel
            after, count = frame[:, HIDDEN, None], frame[:, HIDDEN + 1]
            speaks = (emitted < count)[:, None]
            worth = jnp.where((emits == speaks) & (durations <= after), 100.0 + durations, -100.0)
            of_classes = jnp.where(readers, worth[:, None], -100.0).max(axis=-1)
            return logits.at[:, places].set(of_classes)

        def predict(labels, state):
            emitted = state + (labels != blank)  # not the start
            return (embedding[labels], emitted), emitted

        return greedy_decode(
            transducer,
            joint,
            predict,
            encoded,
            initial_state=jnp.zeros(batch, jnp.int32),
            max_labels=frames,
        )

    return decode, (parameters, encoded)


def run(quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of cpu.py's CSV, and what it prints."""
    due = np.random.default_rng(0).random((BATCH, FRAMES)) < 1 / EVERY
    calls: dict[str, Call] = {}
    found: dict[str, Any] = {}
    for name, transducer in TRANSDUCERS.items():
        decode, operands = make_decoder(transducer, due)
        program = jax.jit(decode).lower(*operands).compile()
        found[name] = program(*operands)
        # Every path must say each label at its frame; else the two are not comparable.
        for b in range(BATCH):
            frames = np.asarray(found[name].frames[b, : found[name].label_lengths[b]])
            np.testing.assert_array_equal(frames, np.flatnonzero(due[b]), err_msg=name)
        calls[name] = Call(program, lambda operands=operands: operands)
    interleave(calls, 0.5 if quick else 8, (3, 30))
    lines = [
        f"Greedy decoding, B = {BATCH}, T = {FRAMES}, V = {CLASSES}, joint of one {HIDDEN} x "
        f"{CLASSES} product. Assumed: a label",
        f"every {EVERY} frames on average, at random, and each time the longest duration that ends "
        "before the next.",
        f"  {'':28}{'ms':>8}{'utterances/s':>14}{'joint evaluations':>19}{'labels':>8}",
    ]
    rows = []
    for name, call in calls.items():
        ms = float(np.median(call.milliseconds))
        evaluations = float(np.mean(found[name].joint_evaluations))
        labels = float(np.mean(found[name].label_lengths))
        row = {"B": BATCH, "T": FRAMES, "V": CLASSES, "program": f"greedy decoding, {name}"}
        row |= {"median_ms": f"{ms:.4f}", "min_ms": f"{min(call.milliseconds):.4f}"}
        row |= {"max_ms": f"{max(call.milliseconds):.4f}", "samples": len(call.milliseconds)}
        rows.append(row | {"note": f"{evaluations:.1f} joint evaluations an utterance"})
        lines.append(
            f"  {name:28}{ms:8.1f}{1e3 * BATCH / ms:14.0f}{evaluations:19.1f}{labels:8.1f}"
        )
    return rows, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    print("\n".join(run(parser.parse_args().quick)[1]))


if __name__ == "__main__":
    main()
