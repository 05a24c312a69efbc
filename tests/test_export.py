"""Does the loss leave the process: exported, compiled ahead of time, or from a cache on disk?

And does it keep JAX's promises about a step that runs many times: no transfer, no new trace, the
modes that JAX has for debugging.
"""

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cases import (
    Case,
    Implementation,
    assert_close,
    criterion,
    losses_and_gradients,
    random_case,
)
from jax_mbrnnt import MultiblankRNNT, Transducer, _ffi, greedy_decode

TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2, 3), "sigma": 0.05},
    "TDT": {"durations": (0, 1, 3), "sigma": 0.05},
}
OPTIONS: dict[str, Any] = {}
T, U, V = 5, 3, 8
KERNELS_OF_A_GRADIENT = 3


@pytest.fixture(autouse=True, params=TRANSDUCERS)
def of_each_transducer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OPTIONS", TRANSDUCERS[request.param])


def value_and_gradient(implementation: Implementation | None = None) -> Any:
    """Of `(logits, labels, logit_lengths, label_lengths)`: losses and their sum's gradient."""
    model = criterion(**OPTIONS, implementation=implementation)

    def step(*operands: jax.Array) -> Any:
        losses, pullback = jax.vjp(lambda logits: model(logits, *operands[1:]), operands[0])
        return losses, pullback(jnp.ones_like(losses))[0]

    return step


def case_of(seed: int, batch: int = 3, dtype: Any = np.float32) -> Case:
    return random_case(seed, (batch,), T, U, V, dtype=dtype)


def assert_right(actual: Any, case: Case, tolerance: float = 1e-5) -> None:
    wide = case._replace(logits=np.asarray(case.logits, np.float64))
    reference = losses_and_gradients(wide, implementation="xla", **OPTIONS)
    for a, e in zip(actual, reference, strict=True):
        assert_close(a, e, tolerance)


# ---- jax.export ------------------------------------------------------------------------

ALLOWED = [export.DisabledSafetyCheck.custom_call(target) for target in _ffi.TARGETS.values()]


def abstract(batch: Any) -> Case:
    return Case(
        jax.ShapeDtypeStruct((batch, T, U + 1, V), jnp.float32),
        jax.ShapeDtypeStruct((batch, U), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


def exported(
    batch: Any, implementation: Implementation | None = None, *platforms: str
) -> export.Exported:
    step = jax.jit(value_and_gradient(implementation))
    with warnings.catch_warnings():  # that of a GPU without kernels
        warnings.simplefilter("ignore")
        return export.export(step, platforms=platforms or None, disabled_checks=ALLOWED)(
            *abstract(batch)
        )


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda", "tpu")], ids=len)
def test_export_of_any_batch_size(platforms: tuple[str, ...]) -> None:
    """The batch is a symbol: the program runs for sizes that were not known then."""
    (symbol,) = export.symbolic_shape("batch")
    program = exported(symbol, None, *platforms)
    assert program.platforms == platforms
    assert _ffi.TARGETS["lattice"] in program.mlir_module()
    for size in (1, 4):
        case = case_of(90, size)
        assert_right(program.call(*case), case)


def test_export_of_a_joint_and_a_decoder_of_any_batch_size() -> None:
    def joint(weights: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return jnp.tanh(encoded[:, :, None] + predicted[:, None]) @ weights

    def step(weights: jax.Array, *rest: jax.Array) -> jax.Array:
        return criterion(**OPTIONS).joint_loss(joint, weights, *rest).sum()

    def decode(encoded: jax.Array, lengths: jax.Array) -> Any:
        functions = (lambda frame, _: frame), (lambda labels, state: ((), state))
        return greedy_decode(criterion(**OPTIONS), *functions, encoded, lengths, initial_state=())

    (b,) = export.symbolic_shape("b")
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (V, V), (3, T, V), (3, U + 1, V)
    floats = [jax.random.normal(*x, jnp.float32) for x in zip(keys, sizes, strict=True)]
    labels, lengths = jnp.ones((3, U), jnp.int32), (jnp.array([T, 0, 2]), jnp.array([U, 0, 1]))
    for function, operands in [
        (jax.grad(step), (*floats, labels, *lengths)),
        (decode, (floats[1], lengths[0])),
    ]:
        shapes = [
            jax.ShapeDtypeStruct((b, *x.shape[1:]) if x.shape[0] == 3 else x.shape, x.dtype)
            for x in operands
        ]
        program = export.export(jax.jit(function), disabled_checks=ALLOWED)(*shapes)
        for found, expected in zip(
            jax.tree.leaves(program.call(*operands)),
            jax.tree.leaves(jax.jit(function)(*operands)),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", ["b, t, 5, 8", "b, 6, u, 8", "b, 6, 5, v"])
@pytest.mark.parametrize("implementation", ["ffi", "xla"])
def test_only_batch_dims_may_be_symbols(shape: str, implementation: Implementation) -> None:
    sizes = export.symbolic_shape(shape)
    labels = jax.ShapeDtypeStruct((sizes[0], sizes[2] - 1), jnp.int32)
    logits = jax.ShapeDtypeStruct(sizes, jnp.float32)
    step = jax.jit(MultiblankRNNT(implementation=implementation))
    with pytest.raises(ValueError, match="logits: expected numbers for all sizes but those of ba"):
        export.export(step, disabled_checks=ALLOWED)(logits, labels)


@pytest.mark.parametrize("batch", [3, "batch"])
def test_export_through_bytes(batch: Any) -> None:
    pytest.importorskip("flatbuffers")
    size = export.symbolic_shape(batch)[0] if isinstance(batch, str) else batch
    stored = exported(size, None, "cpu", "cuda", "tpu").serialize()
    case = case_of(91)
    assert_right(export.deserialize(stored).call(*case), case)


def test_export_names_the_kernels_that_it_has_to_trust() -> None:
    step = jax.jit(value_and_gradient("ffi"))
    with pytest.raises(ValueError, match=_ffi.TARGETS["logit_gradients"]):
        export.export(step, platforms=("cpu",))(*abstract(3))


def test_export_of_the_twin_needs_no_trust() -> None:
    program = export.export(jax.jit(value_and_gradient("xla")), platforms=("cpu", "cuda", "tpu"))
    case = case_of(92)
    assert_right(program(*abstract(3)).call(*case), case)


def test_export_over_devices() -> None:
    """A program for eight devices keeps its kernels local when it is called."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_batch = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(value_and_gradient("ffi"), in_shardings=by_batch, out_shardings=by_batch)
    program = export.export(step, platforms=("cpu",), disabled_checks=ALLOWED)(*abstract(16))
    assert program.nr_devices == 8
    case = case_of(93, 16)
    call = jax.jit(program.call, in_shardings=by_batch)
    text = call.lower(*case).compile().as_text() or ""
    assert f"f32[2,{T},{U + 1},{V}]" in text
    assert "all-gather" not in text
    assert_right(call(*case), case)


# ---- ahead of time, and from disk --------------------------------------------------------


def test_ahead_of_time(implementation: Implementation) -> None:
    """Compiled from shapes alone; another shape or dtype is an error, not a new program."""
    program = jax.jit(value_and_gradient(implementation))
    program = program.lower(*abstract(3)).compile()
    for seed in (94, 95):
        case = case_of(seed)
        assert_right(program(*case), case)
    with pytest.raises(TypeError):
        program(*case_of(94, 4))
    with pytest.raises(TypeError):
        program(*case_of(94, dtype=np.float64))


CACHED = """
    import json
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from jax_mbrnnt import MultiblankRNNT

    counts = {"cache_hits": 0, "cache_misses": 0}
    def count(event, **_):
        name = event.rpartition("/")[-1]
        if name in counts:
            counts[name] += 1
    jax.monitoring.register_event_listener(count)

    logits = np.random.default_rng(0).normal(size=(16, 5, 4, 8)).astype(np.float32)
    labels = np.ones((16, 3), np.int32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    operands = jax.device_put((logits, labels), NamedSharding(mesh, PartitionSpec("data")))
    model = MultiblankRNNT(big_blank_durations=(2, 3), implementation="ffi")
    before = dict(counts)
    step = jax.jit(jax.value_and_grad(lambda *operands: model(*operands).mean()))
    value, gradient = step(*operands)
    counts = {name: counts[name] - before[name] for name in counts}
    gradient = np.asarray(gradient)
    print(json.dumps([counts, float(value), gradient.tobytes().hex()]))
"""


def test_compilation_cache_across_processes(tmp_path: Path) -> None:
    """A sharded step: the second process compiles nothing and has the same bits."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run() -> list[Any]:
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CACHED)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return list(json.loads(result.stdout.splitlines()[-1]))

    first, second = run(), run()
    assert first[0] == {"cache_hits": 0, "cache_misses": 1}
    assert second[0] == {"cache_hits": 1, "cache_misses": 0}
    assert first[1:] == second[1:]


# ---- modes -----------------------------------------------------------------------------


def test_debug_nans(implementation: Implementation) -> None:
    """Padding may hold NaN, and an utterance may be impossible; a poisoned one raises."""
    case = case_of(96)
    lengths = np.array([0, T, 2], np.int32), np.array([1, 2, U], np.int32)
    case = Case(case.logits, case.labels, *lengths)
    case.logits[2, 2:] = np.nan
    step = jax.jit(value_and_gradient(implementation))
    with jax.debug_nans(True):
        losses, gradients = step(*case)
        assert np.isinf(losses[0])
        assert np.all(np.isfinite(gradients))
        case.logits[1, 0, 0, 0] = np.nan
        with pytest.raises(FloatingPointError):
            step(*case)


def test_64_bits_on_and_off_in_one_process(implementation: Implementation) -> None:
    """One jitted function, asked in both modes in turn."""
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    case = case_of(97, dtype=np.float64)
    step = jax.jit(value_and_gradient(implementation))
    for on in (True, False, True):
        with enable(on):
            results = step(*case)
            assert all(x.dtype == ("float64" if on else "float32") for x in results)
            results = [np.asarray(x) for x in results]
        assert_right(results, case, 1e-13 if on else 1e-5)


POLICIES = {
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "everything_saveable": jax.checkpoint_policies.everything_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "save_anything_except_these_names": jax.checkpoint_policies.save_anything_except_these_names(),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoint_policies(policy: str) -> None:
    """Where everything may be kept the kernels run as often as without `jax.checkpoint`."""
    case = case_of(98)
    model = criterion(**OPTIONS, implementation="ffi")

    def losses(logits: jax.Array) -> jax.Array:
        return model(logits, *case[1:])

    def step(logits: jax.Array) -> Any:
        remade = jax.checkpoint(losses, policy=POLICIES[policy])
        value, pullback = jax.vjp(remade, logits)
        return value, pullback(jnp.ones_like(value))[0]

    calls = jax.jit(step).lower(case.logits).as_text().count("stablehlo.custom_call @jax_mbrnnt")
    keeps = policy in ("everything_saveable", "save_anything_except_these_names")
    assert calls == KERNELS_OF_A_GRADIENT if keeps else calls > KERNELS_OF_A_GRADIENT
    assert_right(jax.jit(step)(case.logits), case)


# ---- again and again ---------------------------------------------------------------------


def sharded(case: Case) -> Case:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    placed = jax.device_put(case, NamedSharding(mesh, PartitionSpec("data")))
    return Case(*placed)


@pytest.mark.parametrize("devices", [1, 8])
def test_step_transfers_nothing(devices: int) -> None:
    """With everything on its devices, the first call, which compiles, included."""
    case = case_of(99, 16)
    place = sharded if devices == 8 else jax.device_put
    operands = place(case)
    step = jax.jit(value_and_gradient("ffi"))
    with jax.transfer_guard("disallow"):
        results = step(*operands)
        results = jax.block_until_ready(step(*operands))
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            step(*case)  # the guard is awake
    assert_right(results, case)


def test_one_trace_for_equal_models_and_other_values() -> None:
    traces = 0

    def step(model: Transducer, *operands: jax.Array) -> Any:
        nonlocal traces
        traces += 1
        return model.cost_and_grad(*operands)

    jitted_step = jax.jit(step, static_argnums=0)
    for seed in (101, 102, 103):
        model = criterion(**OPTIONS, implementation="ffi")
        case = case_of(seed, 16)
        assert_right(jitted_step(model, *sharded(case)), case)
    assert traces == 1
    jitted_step(MultiblankRNNT(implementation="ffi"), *sharded(case))
    assert traces == 2
