"""What does XLA's GPU compiler make of a train step? An opt-in check that needs no GPU.

It runs where JAX's CUDA plugin is installed (`pip install --no-deps jax-cuda13-plugin
jax-cuda13-pjrt`, of the same version as jax) and CUDA_HOME names a CUDA toolkit. `pytest -s` shows
what was measured.
"""

import functools
import importlib.util
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from jax_mbrnnt import _ffi

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 14 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
CUDA_HOME = os.environ.get("CUDA_HOME")
B, T, U, V, H = 16, 400, 100, 1024, 640  # B utterances on each device
CHUNK_FRAMES = 7  # of the joint loss by default, in bfloat16: 24 MB of logits
NUMBERS = {"float32": ("f32", 4), "bfloat16": ("bf16", 2)}
WHILE = "--xla_gpu_enable_command_buffer=+WHILE"
DEVICES = {"one": 1, "TDT": 1, "joint": 1, "jit": 8, "explicit": 8, "shard_map": 8}


def mean_of_product(losses: Callable[..., Any]) -> Callable[..., Any]:
    def mean(params, hidden, predicted, *utterances):
        del predicted
        return losses(hidden @ params[0] + params[1], *utterances).mean()

    return mean


def mean_by_chunks(transducer: Any) -> Callable[..., Any]:
    import jax.numpy as jnp

    def joint(params, encoded, predicted):
        hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
        return hidden @ params[0] + params[1]

    def mean(*operands):
        return transducer.joint_loss(joint, *operands, chunk_frames=CHUNK_FRAMES).mean()

    return mean


def compile_step(way: str, dtype: str) -> None:
    """Prints the program of a train step with its gradient, then its temporary memory.

    `joint`: of a joint network, by chunks; otherwise of `logits = h @ W + b`, on one device or with
    the batch spread over eight, by `jit` alone, on a mesh in explicit mode or under `shard_map`.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from jax_mbrnnt import TDT, MultiblankRNNT

    devices = DEVICES[way]
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=H100, topology=f"1x1x{devices}"
    )
    kind = AxisType.Explicit if way == "explicit" else AxisType.Auto
    mesh = Mesh(np.array(topology.devices), ("data",), axis_types=(kind,))
    everywhere, by_batch = PartitionSpec(), PartitionSpec("data")

    def operand(
        *shape: int, dtype: str = dtype, spec: PartitionSpec = by_batch
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    transducer = MultiblankRNNT(big_blank_durations=(2, 4, 8))
    if way == "TDT":
        transducer = TDT(durations=(0, 1, 2, 3, 4))  # V scores, tokens and durations
    if way == "joint":
        mean_loss = mean_by_chunks(transducer)
    elif way == "shard_map":
        mean_loss = mean_of_product(
            jax.shard_map(transducer, mesh=mesh, in_specs=by_batch, out_specs=by_batch)
        )
    else:
        mean_loss = mean_of_product(transducer)

    batch = B * devices
    params = operand(H, V, spec=everywhere), operand(V, spec=everywhere)
    encoded = operand(batch, T, H) if way == "joint" else operand(batch, T, U + 1, H)
    integers = [operand(*shape, dtype="int32") for shape in ((batch, U), (batch,), (batch,))]
    step = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1, 2)))
    set_mesh = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    with set_mesh(mesh):
        traced = step.trace(params, encoded, operand(batch, U + 1, H), *integers)
        compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    print(compiled.as_text())
    print("temp =", compiled.memory_analysis().temp_size_in_bytes)


class Compiled(NamedTuple):
    """A step for one of the devices."""

    program: str
    calls: dict[str, str]  # each kernel's line
    collectives: dict[str, int]
    temporaries: int  # bytes
    schedule: str  # what the host does: a line for each step, indented below the step that has it

    @property
    def in_place(self) -> bool:
        return "output_to_operand_aliasing={{}: (0, {})}" in self.calls["logit_gradients"]


@functools.cache
def compiled(way: str, dtype: str, *more_flags: str) -> Compiled:
    dump = tempfile.TemporaryDirectory()
    flags = ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false", *more_flags]
    flags += [f"--xla_gpu_cuda_data_dir={CUDA_HOME}", f"--xla_dump_to={dump.name}"]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu,cuda",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": " ".join(flags),
        "PATH": f"{CUDA_HOME}/bin:{os.environ['PATH']}",
    }
    run = subprocess.run(
        [sys.executable, __file__, way, dtype], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with dump:
        name = "*.jit_mean.thunk_sequence_after_thunk_passes.txt"
        (schedule,) = (path.read_text() for path in pathlib.Path(dump.name).glob(name))
    calls = [
        (name, line)
        for line in run.stdout.splitlines()
        for name, target in _ffi.TARGETS.items()
        if f'custom_call_target="{target}"' in line
    ]
    assert sorted(name for name, _ in calls) == ["arc_log_probs", "lattice", "logit_gradients"]
    kinds = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "all-reduce")
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", run.stdout)) for kind in kinds}
    (temporaries,) = re.findall(r"^temp = (.*)", run.stdout, re.MULTILINE)
    counts = {kind: n for kind, n in counts.items() if n}
    found = Compiled(run.stdout, dict(calls), counts, int(temporaries), schedule)
    print(
        f"{DEVICES[way]} x H100, {way}, {dtype}: temporary memory "
        f"{found.temporaries / logits_bytes(dtype):.3f} times the logits of a device; "
        f"collectives {found.collectives}"
    )
    return found


def logits_bytes(dtype: str, frames: int = T) -> int:
    return B * frames * (U + 1) * V * NUMBERS[dtype][1]


pytestmark = [
    pytest.mark.skipif("cuda" not in _ffi.MODULES, reason="built without CUDA kernels"),
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None or CUDA_HOME is None,
        reason="needs jax-cuda13-plugin, jax-cuda13-pjrt and CUDA_HOME",
    ),
]


@pytest.mark.parametrize("way", ["one", "TDT", "explicit", "shard_map"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_step_takes_the_memory_of_its_logits_once(dtype: str, way: str) -> None:
    """The logits, which their gradient overwrites, and a few numbers a node."""
    step = compiled(way, dtype)
    assert step.in_place
    assert 1 <= step.temporaries / logits_bytes(dtype) <= 1.05


@pytest.mark.parametrize("dtype", NUMBERS)
def test_jit_over_eight_takes_the_memory_of_its_logits_twice_at_most(dtype: str) -> None:
    """XLA's partitioner loses the alias: the gradient is beside the logits."""
    assert 1 <= compiled("jit", dtype).temporaries / logits_bytes(dtype) <= 2.1


@pytest.mark.parametrize("way", ["jit", "explicit", "shard_map"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_each_of_eight_gets_its_own_utterances(dtype: str, way: str) -> None:
    """Nothing travels but the value and the weights' gradients, added up at once for each dtype."""
    step = compiled(way, dtype)
    for name in ("arc_log_probs", "logit_gradients"):
        assert f"{{{NUMBERS[dtype][0]}[{B},{T},{U + 1},{V}]" in step.calls[name]
    assert step.collectives == {"all-reduce": 1 if dtype == "float32" else 2}


@pytest.mark.parametrize("dtype", NUMBERS)
def test_joint_takes_the_memory_of_a_chunk(dtype: str) -> None:
    """Its logits once, of its hidden activations two, and 5 % of all logits."""
    step = compiled("joint", dtype)
    assert step.in_place
    name, itemsize = NUMBERS[dtype]
    chunk = logits_bytes(dtype, CHUNK_FRAMES)
    hidden = chunk // V * H
    assert chunk <= step.temporaries <= chunk + 2 * hidden + 0.05 * logits_bytes(dtype)

    # Two products and the gradient's kernel write arrays of the chunk's size, and nothing else.
    writers = []
    for result, kind in re.findall(r"^ *%\S+ = (\S+).*? ([\w-]+)\(", step.program, re.MULTILINE):
        shape = re.match(rf"{name}\[([\d,]+)\]", result.removeprefix("("))
        elements = math.prod(int(n) for n in shape[1].split(",")) if shape else 0
        if elements >= chunk // itemsize and kind not in (
            "bitcast",
            "get-tuple-element",
            "parameter",
        ):
            writers.append(kind)
    assert writers == ["custom-call"] * 3


# A CUDA graph of XLA's is a "command buffer".


@pytest.mark.parametrize("way", ["one", "TDT", "joint"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_step_is_one_cuda_graph(dtype: str, way: str) -> None:
    """The joint's loops are where XLA is asked for that."""
    step = compiled(way, dtype, *([WHILE] if way == "joint" else []))
    assert re.findall(r"^\d+: (\w+)", step.schedule, re.MULTILINE) == ["kCommandBuffer"]
    assert step.schedule.count("kWhile") == (2 if way == "joint" else 0)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_pass_through_a_loop_of_the_joint_is_one_cuda_graph(dtype: str) -> None:
    schedule = compiled("joint", dtype).schedule
    bodies = re.findall(r"^ *body:\n +\d+: (.*?)\s*$", schedule, re.MULTILINE)
    assert bodies == ["kCommandBuffer [source | sink]"] * 2  # neither has one before or after it


@pytest.mark.parametrize("way", ["jit", "explicit", "shard_map"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_kernels_of_one_of_eight_are_in_cuda_graphs(dtype: str, way: str) -> None:
    kernels = re.findall(r"^( *)\d+: kCustomCall", compiled(way, dtype).schedule, re.MULTILINE)
    assert len(kernels) == 3
    assert all(kernels)


if __name__ == "__main__":
    compile_step(*sys.argv[1:])
