"""Greedy search in plain Python, one utterance and one arc at a time, and models to search with."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt import (
    NEXT_LABEL,
    NOTHING,
    TDT,
    Arc,
    Emission,
    GreedyDecoding,
    MultiblankRNNT,
    Transducer,
    greedy_decode,
)

LABELS = 4
CONTEXTS = 13


class HAT(Transducer):
    """A transducer of the tests' own: whether to emit is a head of its own, and what is another.

    Beside the labels' scores stand two, "blank" and "label". A blank reads no label's.
    """

    arcs = (Arc(0, True), Arc(1, False))

    def emission(self, num_scores: int) -> Emission:
        return Emission((num_scores - 2, 2), ((NEXT_LABEL, 1), (NOTHING, 0)))


def multiblank(*durations: int, **options: Any) -> MultiblankRNNT:
    return MultiblankRNNT(big_blank_durations=durations, **options)


def tdt(*durations: int, **options: Any) -> TDT:
    return TDT(durations=durations, **options)


EACH = [multiblank(2, 4), tdt(0, 1, 2, 3, 4)]


def name(transducer: Any) -> str:
    """Of a test's parameter."""
    options = [
        f"{key}={getattr(transducer, key)}"
        for key in ("blank_id", "big_blank_durations", "big_blank_ids", "durations")
        if getattr(transducer, key, None) not in (None, (), -1)
    ]
    return f"{type(transducer).__name__}({','.join(options)})"


# ---- the rules -----------------------------------------------------------------------------


class Choice(NamedTuple):
    """What is done at a node."""

    label: int | None  # None: a blank
    duration: int
    log_prob: float


def best(scores: np.ndarray, masked: Any = ()) -> tuple[int, float]:
    """The most probable class but for those masked, and its log-probability among all."""
    allowed = scores.copy()
    allowed[list(masked)] = -np.inf
    v = int(np.argmax(allowed))
    return v, float(scores[v] - np.log(np.sum(np.exp(scores))))


def blanks_of(transducer: MultiblankRNNT, classes: int) -> dict[int, int]:
    """The duration of each blank class."""
    blank = transducer.blank_id % classes
    big = enumerate(transducer.big_blank_durations)
    ids = transducer.big_blank_ids
    return {blank: 1} | {(blank - 1 - i if ids is None else ids[i]) % classes: d for i, d in big}


def choose(transducer: Any, scores: np.ndarray, max_duration: float = np.inf) -> Choice:
    """By the rules of each kind of transducer, from the scores of a node in float64."""
    if isinstance(transducer, MultiblankRNNT):
        blanks = blanks_of(transducer, len(scores))
        v, log_prob = best(scores, [v for v, d in blanks.items() if d > max_duration])
        return Choice(None, blanks[v], log_prob) if v in blanks else Choice(v, 0, log_prob)
    if isinstance(transducer, HAT):
        emits, log_prob = best(scores[-2:])
        if not emits:
            return Choice(None, 1, log_prob)
        v, of_label = best(scores[:-2])
        return Choice(v, 0, log_prob + of_label)
    tokens = len(scores) - len(transducer.durations)
    v, of_token = best(scores[:tokens])
    too_long = [i for i, d in enumerate(transducer.durations) if d > max_duration]
    i, of_duration = best(scores[tokens:], too_long)
    duration, log_prob = transducer.durations[i], of_token + of_duration
    if v == transducer.blank_id % tokens:
        return Choice(None, max(duration, 1), log_prob)
    return Choice(v, duration, log_prob)


# ---- models ----------------------------------------------------------------------------------


class Model(NamedTuple):
    """A transducer of two tables: its logits are sums of two float32, the same ones everywhere."""

    encoded: np.ndarray  # [B, T, V]
    predictions: np.ndarray  # [CONTEXTS, V]
    transducer: Any

    @property
    def blank(self) -> int:
        """The class that starts an utterance; a HAT has no blank among its labels."""
        if isinstance(self.transducer, HAT):
            return 0
        heads = len(getattr(self.transducer, "durations", ()))
        return int(self.transducer.blank_id % (self.encoded.shape[-1] - heads))


def make_model(seed: int, batch: int, frames: int, transducer: Any = None) -> Model:
    transducer = multiblank() if transducer is None else transducer
    rng = np.random.default_rng(seed)
    others = 2
    if not isinstance(transducer, HAT):
        others = 1 + len(getattr(transducer, "durations", None) or transducer.big_blank_durations)
    classes = LABELS + others
    return Model(
        encoded=rng.normal(size=(batch, frames, classes)).astype(np.float32),
        predictions=rng.normal(size=(CONTEXTS, classes)).astype(np.float32),
        transducer=transducer,
    )


def joint(frame: jax.Array, prediction: dict[str, jax.Array]) -> jax.Array:
    return frame + prediction["logits"]


def predict(table: jax.Array, labels: jax.Array, state: dict[str, jax.Array]) -> tuple[Any, Any]:
    """Depends on every label so far; its state has two leaves, of different ranks."""
    hidden = (3 * state["hidden"] + state["cell"][:, 0] + labels + 1) % CONTEXTS
    cell = jnp.stack([hidden + labels, state["cell"][:, 0]], axis=1) % CONTEXTS
    return {"logits": table[hidden]}, {"hidden": hidden, "cell": cell}


def initial_state(batch: int) -> dict[str, jax.Array]:
    return {
        "hidden": jnp.zeros((batch,), jnp.int32),
        "cell": jnp.ones((batch, 2), jnp.int32),
    }


# ---- both searches -----------------------------------------------------------------------------


def decode(
    model: Model, logit_lengths: Any = None, encoded: Any = None, **options: Any
) -> GreedyDecoding:
    encoded = jnp.asarray(model.encoded if encoded is None else encoded)
    lengths = None if logit_lengths is None else jnp.asarray(logit_lengths)
    if isinstance(model.transducer, HAT):
        options.setdefault("start_label", model.blank)
    found: GreedyDecoding = decode_arrays(
        encoded, lengths, jnp.asarray(model.predictions), transducer=model.transducer, **options
    )
    return found


@partial(
    jax.jit,
    static_argnames=(
        *("transducer", "start_label", "max_symbols_per_frame", "max_labels"),
        *("max_duration", "window", "quorum", "lanes"),
    ),
)
def decode_arrays(
    encoded: jax.Array,
    logit_lengths: jax.Array | None,
    table: jax.Array,
    *,
    transducer: Any,
    **options: Any,
) -> GreedyDecoding:
    return greedy_decode(
        transducer,
        joint,
        partial(predict, table),
        encoded,
        logit_lengths,
        initial_state=initial_state(len(encoded)),
        **options,
    )


class Expected(NamedTuple):
    labels: list[int]
    frames: list[int]
    durations: list[int]
    label_log_probs: list[float]
    log_prob: float
    joint_evaluations: int


def decode_one(
    model: Model,
    utterance: int,
    length: int | None = None,
    max_symbols_per_frame: int = 10,
    max_labels: int | None = None,
    start_label: int | None = None,
    max_duration: float = np.inf,
) -> Expected:
    """The same search, one utterance and one arc at a time."""

    def advance(label: int, hidden: int, cell: list[int]) -> tuple[int, list[int]]:
        hidden = (3 * hidden + cell[0] + label + 1) % CONTEXTS
        return hidden, [(hidden + label) % CONTEXTS, cell[0]]

    encoded = model.encoded[utterance]
    length = len(encoded) if length is None else length
    hidden, cell = advance(model.blank if start_label is None else start_label, 0, [1, 1])
    labels: list[int] = []
    frames: list[int] = []
    durations: list[int] = []
    label_log_probs: list[float] = []
    log_prob, evaluations, frame, symbols = 0.0, 0, 0, 0
    while frame < length and (max_labels is None or len(labels) < max_labels):
        logits = (encoded[frame] + model.predictions[hidden]).astype(np.float64)
        evaluations += 1
        choice = choose(model.transducer, logits, max_duration)
        log_prob += choice.log_prob
        if choice.label is not None:
            labels.append(choice.label)
            frames.append(frame)
            durations.append(choice.duration)
            label_log_probs.append(choice.log_prob)
            hidden, cell = advance(choice.label, hidden, cell)
        if choice.duration > 0:
            frame += choice.duration
            symbols = 0
            continue
        symbols += 1
        if symbols == max_symbols_per_frame:
            frame += 1
            symbols = 0
    return Expected(labels, frames, durations, label_log_probs, log_prob, evaluations)


def assert_matches(found: GreedyDecoding, expected: list[Expected]) -> None:
    lengths = [len(e.labels) for e in expected]
    np.testing.assert_array_equal(found.label_lengths, lengths)
    for b, e in enumerate(expected):
        for what in ("labels", "frames", "durations"):
            row = getattr(found, what)[b]
            np.testing.assert_array_equal(row[: lengths[b]], getattr(e, what))
            np.testing.assert_array_equal(row[lengths[b] :], -1)
        log_probs = found.label_log_probs[b]
        np.testing.assert_allclose(log_probs[: lengths[b]], e.label_log_probs, rtol=1e-5)
        np.testing.assert_array_equal(log_probs[lengths[b] :], 0.0)
    np.testing.assert_array_equal(found.joint_evaluations, [e.joint_evaluations for e in expected])
    np.testing.assert_allclose(found.log_probs, [e.log_prob for e in expected], rtol=1e-5)


def assert_equal(one: GreedyDecoding, other: GreedyDecoding) -> None:
    """Of what is found. What it cost depends on the others of the batch."""
    jax.tree.map(np.testing.assert_array_equal, without_costs(one), without_costs(other))


def without_costs(found: GreedyDecoding) -> dict[str, Any]:
    costs = ("joint_rows", "prediction_steps")
    return {key: x for key, x in found._asdict().items() if key not in costs}
