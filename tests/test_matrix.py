"""Does every way to use many devices compute the right numbers on each device's own utterances?

Each cell of the matrix, a way to use devices times what is asked of the loss, is compared with
one device, and its compiled program is read: the kernels get the utterances of one device, and
nothing of the logits' size travels.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cases import (
    Case,
    Implementation,
    assert_close,
    criterion,
    losses_and_gradients,
    random_case,
)
from jax_mbrnnt import _ffi

P = PartitionSpec
VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])
TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2, 3), "sigma": 0.05},
    "TDT": {"durations": (0, 1, 3), "sigma": 0.05},
}
OPTIONS: dict[str, Any] = {}
DEVICES, BATCH, CORE = 8, 16, (5, 4, 8)
TOLERANCE = 1e-5  # of float32 against the twin in float64


@pytest.fixture(autouse=True)
def transducer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multi-blank where a test does not say: to JAX they differ in attributes and shapes alone."""
    name = getattr(request, "param", "multiblank")
    monkeypatch.setitem(globals(), "OPTIONS", TRANSDUCERS[name])


OF_EACH_TRANSDUCER = pytest.mark.parametrize("transducer", TRANSDUCERS, indirect=True)


# ---- reading programs ------------------------------------------------------------------

TRAVELS = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
TARGETS = {target: name for name, target in _ffi.TARGETS.items()}


class Call(NamedTuple):
    """A kernel call of a compiled program."""

    stage: str
    operands: tuple[tuple[int, ...], ...]  # shapes


def kernel_calls(program: str) -> list[Call]:
    calls = []
    for line in program.splitlines():
        target = re.search(r'custom_call_target="(\w+)"', line)
        if target is None or target[1] not in TARGETS:
            continue
        layouts = line.split("operand_layout_constraints={")[1].split("}}")[0]
        shapes = re.findall(r"\w+\[([\d,]*)\]", layouts)
        operands = tuple(tuple(int(n) for n in shape.split(",") if n) for shape in shapes)
        calls.append(Call(TARGETS[target[1]], operands))
    return calls


def collectives(program: str) -> dict[str, int]:
    kinds = (*TRAVELS, "all-reduce")
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in kinds}
    return {kind: count for kind, count in found.items() if count}


def compiled_text(step: Any, *operands: Any) -> str:
    return str(step.lower(*operands).compile().as_text())


STAGES = {
    "losses": ["arc_log_probs", "lattice_score"],
    "value_and_grad": ["arc_log_probs", "lattice", "logit_gradients"],
}


def assert_local(program: str, local: tuple[int, ...], quantity: str) -> None:
    """Of every stage each device gets its own utterances, whole."""
    calls = kernel_calls(program)
    assert sorted({call.stage for call in calls}) == STAGES[quantity]
    for call in calls:
        assert call.operands[0][:-1] == (*local, *CORE[:-1]), call


def assert_only_reduces(program: str, all_reduces: int) -> None:
    """Older XLA does not combine the all-reduces of the value and of the weights' gradient."""
    if VERSION < (0, 8):
        all_reduces *= 2
    found = collectives(program)
    assert found.pop("all-reduce", 0) <= all_reduces
    assert found == {}


# ---- meshes ----------------------------------------------------------------------------


def mesh_of(**sizes: int) -> Mesh:
    assert jax.device_count() == DEVICES
    return Mesh(np.array(jax.devices()).reshape(*sizes.values()), tuple(sizes))


DATA = mesh_of(data=DEVICES)


def place(case: Any, *axes: Any, mesh: Mesh = DATA) -> Any:
    """Every operand with its leading dimensions over the axes."""
    return jax.device_put(case, NamedSharding(mesh, P(*axes)))


def shard_map(f: Any, mesh: Mesh, in_specs: Any, out_specs: Any, **options: Any) -> Any:
    return jax.shard_map(
        f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=True, **options
    )


@contextlib.contextmanager
def explicit(**sizes: int) -> Iterator[Mesh]:
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes)
    )
    use = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    with use(mesh):
        yield mesh


# ---- what is computed ------------------------------------------------------------------


@functools.cache
def batch() -> tuple[jax.Array, Case]:
    """Weights, and a case whose logits are yet to be multiplied by them."""
    case = random_case(70, (BATCH,), *CORE[:1], CORE[1] - 1, CORE[2], dtype=np.float32)
    noise = np.random.default_rng(71).normal(scale=0.1, size=(CORE[2], CORE[2]))
    return jnp.asarray(np.eye(CORE[2]) + noise, jnp.float32), case


def expected() -> dict[str, Any]:
    return expected_of("TDT" if "durations" in OPTIONS else "multiblank")


@functools.cache
def expected_of(transducer: str) -> dict[str, Any]:
    """By the twin on one device, in float64."""
    weights, case = batch()
    w, x = np.asarray(weights, np.float64), case.logits.astype(np.float64)
    losses, gradients = losses_and_gradients(
        case._replace(logits=x @ w), implementation="xla", **TRANSDUCERS[transducer]
    )
    gradients = gradients / BATCH
    by_weights = np.einsum("btuv,btuw->vw", x, gradients)
    return {
        "losses": losses,
        "value_and_grad": (losses.mean(), (by_weights, gradients @ w.T)),
    }


def assert_close_trees(actual: Any, reference: Any) -> None:
    """Whichever way the batch is laid out in dimensions."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(reference), strict=True):
        assert_close(np.asarray(a).reshape(np.shape(e)), e, TOLERANCE)


def assert_expected(actual: Any, quantity: str) -> None:
    assert_close_trees(actual, expected()[quantity])


def asked(quantity: str, losses: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Losses, or their mean and its gradient by weights and features."""
    if quantity == "losses":
        return losses

    def mean(weights: jax.Array, logits: jax.Array, case: Case) -> jax.Array:
        return losses(weights, case._replace(logits=logits)).mean()

    def value_and_grad(weights: jax.Array, case: Case) -> Any:
        return jax.value_and_grad(mean, argnums=(0, 1))(weights, case.logits, case)

    return value_and_grad


def loss_by(implementation: Implementation) -> Callable[[jax.Array, Case], jax.Array]:
    model = criterion(**OPTIONS, implementation=implementation)
    return lambda weights, case: model(case.logits @ weights, *case[1:])


# ---- the ways --------------------------------------------------------------------------


class Program(NamedTuple):
    """A jitted step, what it is called with, and what its compiled program may look like."""

    step: Any
    operands: tuple[Any, ...]
    local: tuple[int, ...] = (BATCH // DEVICES,)  # batch dimensions of the kernels' logits
    all_reduces: int = 1  # of a gradient; losses need none


Loss = Callable[[jax.Array, Case], jax.Array]


def sharded(mesh: Mesh = DATA, *axes: Any) -> tuple[Any, Any]:
    weights, case = batch()
    return place(weights, mesh=mesh), place(case, *(axes or ("data",)), mesh=mesh)


def split(*leading: int) -> Case:
    """The batch as several batch dimensions."""
    return Case(*(x.reshape(*leading, -1, *x.shape[1:]) for x in batch()[1]))


def by_jit(quantity: str, loss: Loss) -> Program:
    return Program(jax.jit(asked(quantity, loss)), sharded())


def by_jit_over_two_axes(quantity: str, loss: Loss) -> Program:
    mesh = mesh_of(data=4, model=2)
    return Program(jax.jit(asked(quantity, loss)), sharded(mesh, ("data", "model")))


def by_jit_of_two_batch_dims(quantity: str, loss: Loss) -> Program:
    """`[4, 4, T, U+1, V]`, each over a mesh axis of its own, which is reduced on its own."""
    mesh = mesh_of(data=4, model=2)
    operands = place(batch()[0], mesh=mesh), place(split(4), "data", "model", mesh=mesh)
    return Program(jax.jit(asked(quantity, loss)), operands, (1, 2), all_reduces=2)


def by_shard_map(quantity: str, loss: Loss) -> Program:
    mapped = shard_map(loss, DATA, (P(), P("data")), P("data"))
    return Program(jax.jit(asked(quantity, mapped)), sharded())


def by_grad_inside_shard_map(quantity: str, loss: Loss) -> Program:
    """The weights are the same everywhere: their gradient is the sum over the devices."""
    assert quantity == "value_and_grad"

    def local(weights: jax.Array, case: Case) -> Any:
        def share(weights: jax.Array, logits: jax.Array) -> jax.Array:
            return loss(weights, case._replace(logits=logits)).sum() / BATCH

        value, gradients = jax.value_and_grad(share, argnums=(0, 1))(weights, case.logits)
        return jax.lax.psum(value, "data"), gradients

    mapped = shard_map(local, DATA, (P(), P("data")), (P(), (P(), P("data"))))
    return Program(jax.jit(mapped), sharded())


def by_partial_shard_map(quantity: str, loss: Loss) -> Program:
    """Manual over one axis of the mesh; along the other one nothing is sharded."""
    mesh = mesh_of(data=4, model=2)
    mapped = shard_map(loss, mesh, (P(), P("data")), P("data"), axis_names={"data"})
    return Program(jax.jit(asked(quantity, mapped)), sharded(mesh), (4,))


def by_partial_shard_map_of_a_sharded_batch(quantity: str, loss: Loss) -> Program:
    """Manual over one axis of the mesh, and the partitioner splits the batch over the other."""
    mesh = mesh_of(data=4, model=2)
    mapped = shard_map(loss, mesh, (P(), P("data")), P("data"), axis_names={"data"})
    operands = sharded(mesh, ("data", "model"))
    # The weights' gradient is reduced over each axis in turn.
    return Program(jax.jit(asked(quantity, mapped)), operands, all_reduces=3)


def by_pmap(quantity: str, loss: Loss) -> Program:
    operands = batch()[0], split(DEVICES)
    if quantity == "losses":
        return Program(jax.pmap(loss, in_axes=(None, 0)), operands)

    def step(weights: jax.Array, case: Case) -> Any:
        value, (by_weights, by_logits) = asked(quantity, loss)(weights, case)
        value, by_weights = jax.lax.pmean((value, by_weights), "devices")
        return value, (by_weights, by_logits / DEVICES)

    axes: dict[str, Any] = {"in_axes": (None, 0), "out_axes": (None, (None, 0))}
    return Program(jax.pmap(step, axis_name="devices", **axes), operands)


def by_pmap_of_vmap(quantity: str, loss: Loss) -> Program:
    return by_pmap(quantity, jax.vmap(loss, in_axes=(None, 0)))


def by_jit_of_vmap(quantity: str, loss: Loss) -> Program:
    return by_jit(quantity, jax.vmap(loss, in_axes=(None, 0)))


def by_jit_of_checkpoint(quantity: str, loss: Loss) -> Program:
    return by_jit(quantity, jax.checkpoint(loss))


def by_jit_of_scan(quantity: str, loss: Loss) -> Program:
    def scanned(weights: jax.Array, case: Case) -> jax.Array:
        return jax.lax.scan(lambda _, one: (None, loss(weights, one)), None, case)[1]

    operands = place(batch()[0]), place(split(2), None, "data")
    return Program(jax.jit(asked(quantity, scanned)), operands, (1,), all_reduces=2)


def by_accumulation(quantity: str, loss: Loss) -> Program:
    """Two halves of the batch one after the other, the gradients added up; one all-reduce."""
    assert quantity == "value_and_grad"

    def step(weights: jax.Array, case: Case) -> Any:
        def add(total: Any, half: Case) -> Any:
            value, (by_weights, by_logits) = asked(quantity, loss)(weights, half)
            return jax.tree.map(jnp.add, total, (value / 2, by_weights / 2)), by_logits / 2

        zeros = jnp.zeros((), weights.dtype), jnp.zeros_like(weights)
        (value, by_weights), by_logits = jax.lax.scan(add, zeros, case)
        return value, (by_weights, by_logits)

    operands = place(batch()[0]), place(split(2), None, "data")
    return Program(jax.jit(step), operands, (1,))


SHARDY = getattr(jax.config, "jax_use_shardy_partitioner", True)
WAYS = [
    by_jit,
    by_jit_over_two_axes,
    by_jit_of_two_batch_dims,
    by_shard_map,
    by_partial_shard_map,
    pytest.param(
        by_partial_shard_map_of_a_sharded_batch,
        marks=pytest.mark.xfail(
            not SHARDY, strict=True, reason="older JAX's GSPMD gathers the batch inside"
        ),
    ),
    by_pmap,
    by_pmap_of_vmap,
    by_jit_of_vmap,
    by_jit_of_checkpoint,
    by_jit_of_scan,
]
WAYS_TO_A_GRADIENT = [by_grad_inside_shard_map, by_accumulation]


@pytest.mark.parametrize("way", WAYS)
def test_losses_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("losses", loss_by("ffi"))
    text = compiled_text(program.step, *program.operands)
    assert_local(text, program.local, "losses")
    assert_only_reduces(text, 0)
    assert_expected(program.step(*program.operands), "losses")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("way", [*WAYS, *WAYS_TO_A_GRADIENT])
def test_gradients_on_many_devices(way: Callable[..., Program]) -> None:
    """The value, the weights' gradient, which is reduced, and the features', which is not."""
    program = way("value_and_grad", loss_by("ffi"))
    text = compiled_text(program.step, *program.operands)
    assert_local(text, program.local, "value_and_grad")
    assert_only_reduces(text, program.all_reduces)
    assert_expected(program.step(*program.operands), "value_and_grad")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize(
    "way", [by_shard_map, by_grad_inside_shard_map, by_partial_shard_map, by_pmap]
)
def test_gradients_of_the_twin_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("value_and_grad", loss_by("xla"))
    text = compiled_text(program.step, *program.operands)
    assert kernel_calls(text) == []
    assert_only_reduces(text, program.all_reduces)
    assert_expected(program.step(*program.operands), "value_and_grad")


# ---- the loss of a joint -----------------------------------------------------------------


def joint_loss_by(implementation: Implementation) -> Loss:
    """Chunks of 2 of the 5 frames; the frames' features are those of all nodes."""
    model = criterion(**OPTIONS, implementation=implementation)

    def joint(weights: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return encoded @ weights + predicted[..., None, :, :]

    def losses(weights: jax.Array, case: Case) -> jax.Array:
        predicted = jnp.zeros_like(case.logits[..., 0, :, :1])
        operands = weights, case.logits, predicted, *case[1:]
        return model.joint_loss(joint, *operands, chunk_frames=2)

    return losses


def assert_chunks_are_local(program: Program, text: str) -> None:
    batch = len(program.local)
    for call in kernel_calls(text):
        assert call.operands[0][:batch] == program.local
        frames = 5 if call.stage.startswith("lattice") else 2
        assert call.operands[0][batch:-1] == (frames, 4)
    # Of the weights' gradient, of the value, and of how many chunks there are.
    assert collectives(text).keys() <= {"all-reduce"}


@pytest.mark.parametrize("way", WAYS)
def test_losses_of_a_joint_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("losses", joint_loss_by("ffi"))
    assert_chunks_are_local(program, compiled_text(program.step, *program.operands))
    assert_expected(program.step(*program.operands), "losses")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("way", [*WAYS, *WAYS_TO_A_GRADIENT])
def test_gradients_of_a_joint_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("value_and_grad", joint_loss_by("ffi"))
    assert_chunks_are_local(program, compiled_text(program.step, *program.operands))
    assert_expected(program.step(*program.operands), "value_and_grad")


@pytest.mark.parametrize("implementation", ["ffi", "xla"])
@pytest.mark.parametrize("way", [by_shard_map, by_grad_inside_shard_map, by_pmap])
def test_weights_of_a_joint_are_reduced_once(
    way: Callable[..., Program], implementation: Implementation
) -> None:
    """Where the devices are programmed one by one: after the loop over the chunks, not in it."""
    program = way("value_and_grad", joint_loss_by(implementation))
    text = compiled_text(program.step, *program.operands)
    assert_only_reduces(text, program.all_reduces)
    assert_expected(program.step(*program.operands), "value_and_grad")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("axes", [("data",), (("data", "model"),)], ids=str)
def test_joint_on_an_explicit_mesh(axes: tuple[Any, ...]) -> None:
    reference = expected()["value_and_grad"]  # outside of the mesh
    with explicit(data=4, model=2) as mesh:
        operands = typed(mesh, *axes)
        step = jax.jit(asked("value_and_grad", joint_loss_by("ffi")))
        assert collectives(compiled_text(step, *operands)).keys() <= {"all-reduce"}
        assert_close_trees(step(*operands), reference)


# ---- explicit meshes -------------------------------------------------------------------


def typed(mesh: Mesh, *axes: Any) -> tuple[Any, Any]:
    weights, case = batch()
    return place(weights, mesh=mesh), place(case, *axes, mesh=mesh)


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("quantity", STAGES)
@pytest.mark.parametrize("axes", [("data",), ("model",), (("data", "model"),)], ids=str)
def test_explicit_mesh(quantity: str, axes: tuple[Any, ...]) -> None:
    reference = expected()[quantity]  # outside of the mesh
    with explicit(data=4, model=2) as mesh:
        operands = typed(mesh, *axes)
        step = jax.jit(asked(quantity, loss_by("ffi")))
        text = compiled_text(step, *operands)
        devices = {"data": 4, "model": 2}.get(axes[0], DEVICES)
        assert_local(text, (BATCH // devices,), quantity)
        assert_only_reduces(text, int(quantity == "value_and_grad"))
        assert_close_trees(step(*operands), reference)


@pytest.mark.parametrize("way", ["batched", "vmap"])
def test_in_place_on_an_explicit_mesh(way: str) -> None:
    """Under `shard_map` there is nothing to split, and so XLA keeps the CUDA kernels' aliases."""
    reference = expected()["value_and_grad"]
    loss = loss_by("ffi")
    if way == "vmap":
        loss = jax.vmap(loss, in_axes=(None, 0))
    with explicit(data=DEVICES) as mesh:
        operands = typed(mesh, "data")
        step = jax.jit(asked("value_and_grad", loss))
        assert_close_trees(step(*operands), reference)
        jaxpr = str(step.trace(*operands).jaxpr)
    for stage in ("lattice", "logit_gradients"):
        (call,) = re.findall(rf"shard_map\[(?:(?!shard_map\[).)*mbrnnt_{stage}\[", jaxpr, re.DOTALL)
        assert call


@pytest.mark.xfail(
    VERSION < (0, 7), strict=True, reason="older JAX has no rule for scatter-add on such a mesh"
)
def test_twin_on_an_explicit_mesh() -> None:
    reference = expected()["value_and_grad"]
    with explicit(data=DEVICES) as mesh:
        operands = typed(mesh, "data")
        step = jax.jit(asked("value_and_grad", loss_by("xla")))
        text = compiled_text(step, *operands)
        assert_only_reduces(text, 1)
        assert_close_trees(step(*operands), reference)


def test_types_on_an_explicit_mesh() -> None:
    """The results carry the batch's sharding in their types, also where nothing is jitted."""
    case = batch()[1]
    model = criterion(**OPTIONS, implementation="ffi")
    with explicit(data=DEVICES) as mesh:
        losses, gradients = model.cost_and_grad(*place(case, "data", mesh=mesh))
        assert jax.typeof(losses).sharding.spec == P("data")
        assert tuple(jax.typeof(gradients).sharding.spec) == ("data", None, None, None)


@pytest.mark.parametrize("spec", [(None, "data"), (None, None, "data"), (None, None, None, "data")])
def test_explicitly_sharded_core_is_a_type_error(spec: tuple[Any, ...]) -> None:
    """Of frames, labels and classes an utterance needs all: what to do is up to the caller."""
    case = random_case(72, (2,), 8, 7, 8, dtype=np.float32)
    model = criterion(**OPTIONS, implementation="ffi")
    with explicit(data=DEVICES) as mesh:
        logits = place(case.logits, *spec, mesh=mesh)
        rest = place(tuple(case[1:]), mesh=mesh)
        with pytest.raises(TypeError, match=r"only batch dimensions .* reshard"):
            jax.jit(model.cost_and_grad)(logits, *rest)


# ---- shardings that do not fit ---------------------------------------------------------


def cost_and_grad() -> Any:
    return jax.jit(criterion(**OPTIONS, implementation="ffi").cost_and_grad)


def assert_costs_and_gradients(actual: Any, case: Case) -> None:
    wide = case._replace(logits=np.asarray(case.logits, np.float64))
    reference = losses_and_gradients(wide, implementation="xla", **OPTIONS)
    assert_close_trees(actual, reference)


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("axis", [1, 2, 3], ids=["T", "U", "V"])
def test_sharded_core_is_gathered_along_that_axis_alone(axis: int) -> None:
    """Under automatic sharding the logits of an utterance come together: one all-gather over the
    mesh axis that splits them. The batch stays where it is, and the gradient comes back whole.
    """
    case = random_case(73, (BATCH,), 6, 3, 8, dtype=np.float32)
    mesh = mesh_of(data=4, model=2)
    spec = ["data", None, None, None]
    spec[axis] = "model"
    operands = place(case.logits, *spec, mesh=mesh), *place(tuple(case[1:]), "data", mesh=mesh)
    text = compiled_text(cost_and_grad(), *operands)
    assert {call.operands[0][:3] for call in kernel_calls(text)} == {(4, 6, 4)}
    assert collectives(text) == {"all-gather": 1}
    (gathered,) = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    assert gathered == "4,6,4,8"
    assert_costs_and_gradients(cost_and_grad()(*operands), case)


def test_replicated_labels() -> None:
    """Labels and lengths on every device: each takes those of its own utterances."""
    case = batch()[1]
    operands = place(case.logits, "data"), *place(tuple(case[1:]))
    text = compiled_text(cost_and_grad(), *operands)
    assert_local(text, (2,), "value_and_grad")
    assert collectives(text) == {}
    results = cost_and_grad()(*operands)
    assert all(result.sharding.spec[0] == "data" for result in results)
    assert_costs_and_gradients(results, case)


def test_replicated_labels_on_an_explicit_mesh() -> None:
    case = batch()[1]
    with explicit(data=DEVICES) as mesh:
        operands = place(case.logits, "data", mesh=mesh), *place(tuple(case[1:]), mesh=mesh)
        text = compiled_text(cost_and_grad(), *operands)
        assert_local(text, (2,), "value_and_grad")
        assert collectives(text) == {}
        results = jax.tree.map(np.asarray, cost_and_grad()(*operands))
    assert_costs_and_gradients(results, case)


def test_replicated_logits_with_sharded_labels_on_an_explicit_mesh() -> None:
    case = batch()[1]
    with explicit(data=DEVICES) as mesh:
        operands = place(case.logits, mesh=mesh), *place(tuple(case[1:]), "data", mesh=mesh)
        with pytest.raises(TypeError, match=r"sharded over the batch as .* reshard"):
            jax.jit(cost_and_grad())(*operands)


def test_replicated_logits_with_sharded_labels() -> None:
    """All devices may compute all utterances then; the numbers are right."""
    case = batch()[1]
    operands = place(case.logits), *place(tuple(case[1:]), "data")
    assert_costs_and_gradients(cost_and_grad()(*operands), case)


def test_batch_that_the_devices_do_not_divide() -> None:
    """13 utterances on 8 devices, as a constraint inside `jit`: XLA pads to 2 on each. JAX has
    no such arrays outside of `jit`, so the gradient is gathered at the end, the logits are not.
    """
    case = random_case(74, (13,), *CORE[:1], CORE[1] - 1, CORE[2], dtype=np.float32)
    by_batch = NamedSharding(DATA, P("data"))

    @jax.jit
    def step(weights: jax.Array, case: Case) -> Any:
        logits = jax.lax.with_sharding_constraint(case.logits @ weights, by_batch)
        return cost_and_grad()(logits, *case[1:])

    operands = place(jnp.eye(CORE[2], dtype=jnp.float32)), place(case)
    text = compiled_text(step, *operands)
    assert_local(text, (2,), "value_and_grad")
    assert collectives(text) == {"all-gather": 2}  # of the losses and of the gradient
    assert_costs_and_gradients(step(*operands), case)


@OF_EACH_TRANSDUCER
def test_donated_logits_become_the_gradient_on_every_device() -> None:
    case = batch()[1]
    model = criterion(**OPTIONS, implementation="ffi")
    step = jax.jit(model.cost_and_grad, donate_argnums=0)
    donated = place(case, "data")
    text = compiled_text(step, *donated)
    assert "input_output_alias={ {1}: (0, {}, may-alias) }" in text.splitlines()[0]
    assert_local(text, (2,), "value_and_grad")
    assert collectives(text) == {}
    assert_costs_and_gradients(step(*donated), case)
    assert donated[0].is_deleted()


# ---- faults on one device --------------------------------------------------------------

SICK = 5  # on the third device


def with_fault(case: Case, fault: str) -> Case:
    logits, labels, logit_lengths, label_lengths = map(np.array, case)
    logit_lengths[SICK], label_lengths[SICK] = CORE[0], CORE[1] - 1
    if fault == "NaN":
        logits[SICK, 1, 1, 3] = np.nan
    elif fault == "+inf":
        logits[SICK, 1, 1, 3] = np.inf
    elif fault == "label":
        labels[SICK, 0] = CORE[2]
    elif fault == "negative label":
        labels[SICK, 2] = -1
    elif fault == "logit length":
        logit_lengths[SICK] = CORE[0] + 1
    elif fault == "label length":
        label_lengths[SICK] = -1
    else:
        assert fault == "none"
    return Case(logits, labels, logit_lengths, label_lengths)


FAULTS = ["NaN", "+inf", "label", "negative label", "logit length", "label length"]


def cost_and_grad_by_shard_map() -> Any:
    model = criterion(**OPTIONS, implementation="ffi")
    return jax.jit(shard_map(model.cost_and_grad, DATA, (P("data"),) * 4, P("data")))


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("step", [cost_and_grad, cost_and_grad_by_shard_map])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_stays_with_its_utterance(fault: str, step: Callable[[], Any]) -> None:
    case = batch()[1]
    healthy = step()(*place(with_fault(case, "none"), "data"))
    sick = step()(*place(with_fault(case, fault), "data"))
    others = np.arange(BATCH) != SICK
    for before, after in zip(healthy, sick, strict=True):
        assert np.all(np.isfinite(before))
        np.testing.assert_array_equal(np.asarray(after)[others], np.asarray(before)[others])
        assert np.all(np.isnan(np.asarray(after)[SICK]))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_and_the_mean(fault: str) -> None:
    """The reduced value says so; the gradients of the others' logits stay bit for bit."""
    case = batch()[1]
    model = criterion(**OPTIONS, implementation="ffi")
    step = jax.jit(jax.value_and_grad(lambda logits, *rest: model(logits, *rest).mean()))
    _, healthy = step(*place(with_fault(case, "none"), "data"))
    value, sick = step(*place(with_fault(case, fault), "data"))
    others = np.arange(BATCH) != SICK
    assert np.isnan(value)
    np.testing.assert_array_equal(np.asarray(sick)[others], np.asarray(healthy)[others])
    assert np.all(np.isnan(np.asarray(sick)[SICK]))
