"""Is the alignment the most probable path of every lattice, whatever JAX makes of the call?"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cases import (
    Array,
    Case,
    Implementation,
    assert_close,
    compiled,
    criterion,
    random_case,
)
from enumeration import paths
from jax_mbrnnt import (
    Alignment,
    Arc,
    _ffi,
    multiblank_arcs,
    rnnt_arcs,
    tdt_arcs,
    viterbi_alignment,
)

T, U = 4, 3
TDT = tdt_arcs((0, 1, 3))
ARCS = [
    rnnt_arcs(),
    multiblank_arcs((2, 3)),
    tdt_arcs((0, 1, 2)),
    tdt_arcs((3, 2)),  # from some nodes no path leads to the end
    (Arc(3, False), Arc(1, True), Arc(1, False), Arc(2, True)),
    (Arc(1, False), Arc(1, False), Arc(0, True), Arc(0, True)),
    (Arc(2**31 - 1, False), Arc(1, False)),
]
TABLES = pytest.mark.parametrize(
    "arcs",
    ARCS,
    ids=lambda arcs: " ".join(f"{arc.duration}{'e' if arc.emits else 'b'}" for arc in arcs),
)


@functools.cache
def compiled_alignment(arcs: tuple[Arc, ...], implementation: Implementation) -> Any:
    """Of `(arc_log_probs, logit_lengths, label_lengths)`, as arrays of numpy."""
    function = functools.partial(viterbi_alignment, arcs=arcs, implementation=implementation)
    run = jax.jit(function)
    return lambda *operands: jax.tree.map(np.asarray, run(*operands))


def as_alignment(
    steps: list[tuple[int, int, int]], arc_log_probs: Array, arcs: tuple[Arc, ...], log_prob: float
) -> Alignment:
    """Of one utterance, from its path."""
    num_frames, columns, _ = arc_log_probs.shape
    frames, durations = np.full((2, columns - 1), -1)
    label_log_probs = np.zeros(columns - 1, arc_log_probs.dtype)
    path = np.full(num_frames + columns - 1, -1)
    path[: len(steps)] = [a for *_, a in steps]
    for t, u, a in steps:
        if arcs[a].emits:
            frames[u], durations[u] = t, arcs[a].duration
            label_log_probs[u] = arc_log_probs[t, u, a]
    return Alignment(frames, durations, label_log_probs, path, np.float64(log_prob))


def enumerated(
    arc_log_probs: Array, logit_lengths: Array, label_lengths: Array, arcs: tuple[Arc, ...]
) -> Alignment:
    """By walking every path, in the order of the arcs' numbers: the first one of the best."""
    found = []
    for x, num_frames, num_labels in zip(arc_log_probs, logit_lengths, label_lengths, strict=True):
        every = list(paths(int(num_frames), int(num_labels), arcs))
        scores = [sum(float(x[step]) for step in path) for path in every]
        best = max(scores, default=-np.inf)
        steps = every[scores.index(best)] if best > -np.inf else []
        found.append(as_alignment(steps, x, arcs, best))
    return Alignment(*(np.stack(field) for field in zip(*found, strict=True)))


def assert_equal(actual: Alignment, expected: Alignment, tolerance: float = 1e-13) -> None:
    for name in ("frames", "durations", "arcs"):
        field = getattr(actual, name)
        assert field.dtype == np.int32
        np.testing.assert_array_equal(field, getattr(expected, name), name)
    np.testing.assert_array_equal(actual.label_log_probs, expected.label_log_probs)
    assert_close(actual.log_probs, expected.log_probs, tolerance)


def every_length() -> tuple[Array, Array]:
    t, u = np.indices((T, U + 1), dtype=np.int32)
    return 1 + t.ravel(), u.ravel()


@TABLES
def test_best_path_over_any_arc_table(
    arcs: tuple[Arc, ...], implementation: Implementation
) -> None:
    lengths = every_length()
    arc_log_probs = np.random.default_rng(0).normal(size=(T * (U + 1), T, U + 1, len(arcs)))
    found = compiled_alignment(arcs, implementation)(arc_log_probs, *lengths)
    assert_equal(found, enumerated(arc_log_probs, *lengths, arcs))


@TABLES
def test_of_paths_that_are_equally_good_the_first(
    arcs: tuple[Arc, ...], implementation: Implementation
) -> None:
    """Of the arcs in the order of their numbers; some are masked."""
    lengths = every_length()
    rng = np.random.default_rng(1)
    shape = T * (U + 1), T, U + 1, len(arcs)
    arc_log_probs = rng.choice([-1.0, -2.0, -np.inf], shape, p=[0.45, 0.45, 0.1])
    found = compiled_alignment(arcs, implementation)(arc_log_probs, *lengths)
    assert_equal(found, enumerated(arc_log_probs, *lengths, arcs))


def viterbi(x: Array, arcs: tuple[Arc, ...]) -> Alignment:
    """Of one full utterance, frame by frame from the last one back."""
    x = x.astype(np.float64)
    num_frames, columns, _ = x.shape
    betas = np.full((num_frames, columns), -np.inf)
    best = np.zeros((num_frames, columns), int)
    for t in reversed(range(num_frames)):
        for u in reversed(range(columns)):
            scores = np.full(len(arcs), -np.inf)
            for a, (duration, emits) in enumerate(arcs):
                if t + duration < num_frames and u + emits < columns:
                    scores[a] = x[t, u, a] + betas[t + duration, u + emits]
                elif t + duration == num_frames and u == columns - 1 and not emits:
                    scores[a] = x[t, u, a]
            best[t, u], betas[t, u] = scores.argmax(), scores.max()
    steps, t, u = [], 0, 0
    while t < num_frames:
        steps.append((t, u, int(best[t, u])))
        t, u = t + arcs[best[t, u]].duration, u + arcs[best[t, u]].emits
    return as_alignment(steps, x, arcs, betas[0, 0])


@pytest.mark.parametrize("arcs", [ARCS[1], ARCS[2]], ids=["multiblank", "TDT"])
def test_long_utterance(arcs: tuple[Arc, ...], implementation: Implementation) -> None:
    num_frames, num_labels = 1000, 40
    rng = np.random.default_rng(2)
    arc_log_probs = -rng.exponential(2.0, (num_frames, num_labels + 1, len(arcs)))
    arc_log_probs = arc_log_probs.astype(np.float32)
    found = compiled_alignment(arcs, implementation)(arc_log_probs, num_frames, num_labels)
    assert found.log_probs.dtype == found.label_log_probs.dtype == "float32"
    assert_equal(found, viterbi(arc_log_probs, arcs), 1e-7)  # one rounding to float32


def test_roundings_do_not_choose_the_path(implementation: Implementation) -> None:
    """The same arcs in any order are equally good: sums of float32 would not know."""
    num_frames, num_labels = 600, 40
    arc_log_probs = np.tile(np.float32([-2.3, -0.105]), (num_frames, num_labels + 1, 1))
    found = compiled_alignment(rnnt_arcs(), implementation)(arc_log_probs, num_frames, num_labels)
    assert found.arcs.tolist() == [0] * num_labels + [1] * num_frames


TRANSDUCERS: dict[str, dict[str, Any]] = {
    "RNN-T": {},
    "multiblank": {"big_blank_durations": (2, 3), "sigma": 0.05},
    "TDT": {"durations": (0, 2, 1), "sigma": 0.05},
}


@pytest.mark.parametrize("options", TRANSDUCERS.values(), ids=TRANSDUCERS)
def test_alignment_of_logits(options: dict[str, Any], implementation: Implementation) -> None:
    """That of the arcs as the loss weighs them, whose likelihood it is at most."""
    options = {**options, "implementation": implementation}
    model = criterion(**options)
    blanks = [*model.emission(8).blanks, *range(model.emission(8).num_labels, 8)]
    case = random_case(3, (T * (U + 1),), T, U, 8, blanks=blanks)
    case = Case(case.logits, case.labels, *every_length())

    found = jax.tree.map(np.asarray, compiled("alignment", **options)(*case))
    arc_log_probs = np.asarray(compiled("arc_log_probs", **options)(*case))
    assert_equal(found, enumerated(arc_log_probs, *case[2:], model.arcs))
    log_likelihoods = -np.asarray(compiled("score_forward", **options)(*case))
    every = [list(paths(int(t), int(u), model.arcs)) for t, u in zip(*case[2:], strict=True)]
    alone = np.array([len(of_one) == 1 for of_one in every])
    assert 0 < alone.sum() < len(alone)
    assert_close(found.log_probs[alone], log_likelihoods[alone], 1e-13)
    assert np.all(found.log_probs[~alone] < log_likelihoods[~alone])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_logits(dtype: str) -> None:
    case = random_case(4, (), dtype=dtype)
    found = criterion(**TRANSDUCERS["TDT"]).alignment(*case)
    assert found.log_probs.dtype == found.label_log_probs.dtype == "float32"
    exact = criterion(**TRANSDUCERS["TDT"]).alignment(case.logits.astype("float32"), *case[1:])
    np.testing.assert_array_equal(found.arcs, exact.arcs)


# The transformations.


@pytest.fixture
def batch() -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(7)
    shape = (8, 2)
    arc_log_probs = rng.normal(size=(*shape, T, U + 1, len(TDT)))
    return arc_log_probs, rng.integers(0, T + 1, shape), rng.integers(0, U + 1, shape)


def test_vmap(batch: tuple[Array, ...], implementation: Implementation) -> None:
    """Batch dimensions are the same, and the same number of kernel calls."""
    align = functools.partial(viterbi_alignment, arcs=TDT, implementation=implementation)
    mapped = jax.jit(jax.vmap(jax.vmap(align)))
    found = compiled_alignment(TDT, implementation)(*batch)
    assert_equal(jax.tree.map(np.asarray, mapped(*batch)), found)
    if implementation == "ffi":  # what JAX does to a function of its own is tried less often
        target = _ffi.TARGETS["lattice_alignment"]
        assert mapped.lower(*batch).as_text().count(f"@{target}(") == 1
        x, *lengths = (operand[0] for operand in batch)
        of_one = jax.vmap(align, (None, 0, 0))(x[0], *lengths)
        stacked = compiled_alignment(TDT, implementation)(np.stack([x[0]] * 2), *lengths)
        assert_equal(jax.tree.map(np.asarray, of_one), stacked)


def test_batch_sharded_alignment_stays_local(
    batch: tuple[Array, ...], implementation: Implementation
) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    align = functools.partial(viterbi_alignment, arcs=TDT, implementation=implementation)
    program = jax.jit(align).lower(*sharded).compile()
    collectives = r"all-gather|all-to-all|collective-permute|all-reduce"
    assert not re.findall(collectives, program.as_text() or "")
    found = program(*sharded)
    assert all(field.sharding.spec[0] == "data" for field in found)
    expected = compiled_alignment(TDT, implementation)(*batch)
    assert_equal(jax.tree.map(np.asarray, found), expected)

    specs = PartitionSpec("data"), PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(
        lambda x, t, u: align(x, t[: len(x)], u), mesh=mesh, in_specs=specs, out_specs=specs[0]
    )
    lengths = np.full((8, 2), T), batch[2]
    found = jax.jit(mapped)(batch[0], *lengths)
    expected = compiled_alignment(TDT, implementation)(batch[0], *lengths)
    assert_equal(jax.tree.map(np.asarray, found), expected)


def test_derivative_is_that_of_the_path(
    batch: tuple[Array, ...], implementation: Implementation
) -> None:
    arc_log_probs, *lengths = batch
    arc_log_probs = jnp.asarray(arc_log_probs)
    direction = jnp.asarray(np.random.default_rng(9).normal(size=arc_log_probs.shape))
    weights = jnp.asarray(np.random.default_rng(8).normal(size=(8, 2, U)))

    def total(x: jax.Array) -> jax.Array:
        found = viterbi_alignment(x, *lengths, arcs=TDT, implementation=implementation)
        log_probs = jnp.where(jnp.isfinite(found.log_probs), found.log_probs, 0)
        return log_probs.sum() + (weights * found.label_log_probs).sum()

    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(total)(x), jax.jvp(total, (x,), (direction,))[1]

    gradient, moved = jax.jit(run)(arc_log_probs)
    found = compiled_alignment(TDT, implementation)(*batch)
    expected = np.zeros(arc_log_probs.shape)
    for b in np.ndindex(8, 2):
        t = u = 0
        for a in found.arcs[b][found.arcs[b] >= 0].tolist():
            expected[b][t, u, a] = 1 + (weights[b][u] if TDT[a].emits else 0)
            t, u = t + TDT[a].duration, u + TDT[a].emits
    assert expected.any()
    assert_close(gradient, expected, 1e-15)
    assert_close(moved, (direction * expected).sum(), 1e-12)


def test_derivative_in_logits(implementation: Implementation) -> None:
    """Of the path's probability, while the path stays: by differences."""
    model = criterion(**TRANSDUCERS["TDT"], implementation=implementation)
    case = random_case(10, (), blanks=range(4, 8))

    def log_prob(logits: jax.Array) -> jax.Array:
        return model.alignment(logits, *case[1:]).log_probs

    run = jax.jit(jax.value_and_grad(log_prob))
    direction = np.random.default_rng(11).normal(size=case.logits.shape)
    _, gradient = run(case.logits)
    slope = (run(case.logits + 1e-6 * direction)[0] - run(case.logits - 1e-6 * direction)[0]) / 2e-6
    assert abs(slope) > 0.1
    assert_close((gradient * direction).sum(), slope, 1e-7)
