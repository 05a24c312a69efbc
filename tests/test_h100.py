"""What does XLA's GPU compiler make of a train step? An opt-in check that needs no GPU.

It runs where JAX's CUDA plugin is installed (`pip install --no-deps jax-cuda13-plugin
jax-cuda13-pjrt`, of the same version as jax) and CUDA_HOME names a CUDA toolkit. `pytest -s` shows
what was measured.
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from typing import NamedTuple

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
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 14 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
CUDA_HOME = os.environ.get("CUDA_HOME")
B, T, U, V, H = 16, 400, 100, 1024, 640  # B utterances on each device


def compile_step(dtype: str, devices: int, way: str) -> None:
    """Prints the program of `logits = h @ W + b` with its gradient, then its memory.

    The batch is spread over the devices, by `jit` alone, on a mesh in explicit mode or under
    `shard_map`; W and b are on all.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from jax_mbrnnt import MultiblankRNNT

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

    losses = MultiblankRNNT(big_blank_durations=(2, 4, 8))
    if way == "shard_map":
        losses = jax.shard_map(losses, mesh=mesh, in_specs=by_batch, out_specs=by_batch)

    def mean_loss(weights, bias, hidden, labels, *lengths):
        return losses(hidden @ weights + bias, labels, *lengths).mean()

    batch = B * devices
    lengths = operand(batch, dtype="int32")
    operands = (
        operand(H, V, spec=everywhere),
        operand(V, spec=everywhere),
        operand(batch, T, U + 1, H),
        operand(batch, U, dtype="int32"),
    )
    step = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1, 2)))
    set_mesh = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    with set_mesh(mesh):
        lowered = step.trace(*operands, lengths, lengths).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile()
    print(compiled.as_text())
    logits_size = B * T * (U + 1) * V * jnp.dtype(dtype).itemsize
    print("temp / logits =", compiled.memory_analysis().temp_size_in_bytes / logits_size)


class Compiled(NamedTuple):
    """A step for one of the devices."""

    calls: dict[str, str]  # each kernel's line
    collectives: dict[str, int]
    temp_over_logits: float


@functools.cache
def compiled(dtype: str, devices: int, way: str) -> Compiled:
    flags = ["--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"]
    flags.append(f"--xla_gpu_cuda_data_dir={CUDA_HOME}")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu,cuda",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": " ".join(flags),
        "PATH": f"{CUDA_HOME}/bin:{os.environ['PATH']}",
    }
    run = subprocess.run(
        [sys.executable, __file__, dtype, str(devices), way],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    calls = [
        (name, line)
        for line in run.stdout.splitlines()
        for name, target in _ffi.TARGETS.items()
        if f'custom_call_target="{target}"' in line
    ]
    assert sorted(name for name, _ in calls) == ["arc_log_probs", "lattice", "logit_gradients"]
    kinds = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "all-reduce")
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", run.stdout)) for kind in kinds}
    (ratio,) = re.findall(r"temp / logits = (.*)", run.stdout)
    found = Compiled(dict(calls), {k: n for k, n in counts.items() if n}, float(ratio))
    print(
        f"{devices} x H100, {way}, {dtype}: temporary memory {found.temp_over_logits:.3f} times "
        f"the logits of a device; collectives {found.collectives}"
    )
    return found


pytestmark = [
    pytest.mark.skipif("cuda" not in _ffi.MODULES, reason="built without CUDA kernels"),
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None or CUDA_HOME is None,
        reason="needs jax-cuda13-plugin, jax-cuda13-pjrt and CUDA_HOME",
    ),
]
DTYPES = {"float32": "f32", "bfloat16": "bf16"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_step_takes_the_memory_of_its_logits_once(dtype: str) -> None:
    step = compiled(dtype, 1, "jit")
    assert "output_to_operand_aliasing={{}: (0, {})}" in step.calls["logit_gradients"]
    # The logits, which their gradient overwrites, and a few numbers a node.
    assert 1 <= step.temp_over_logits <= 1.05


@pytest.mark.parametrize("way", ["jit", "explicit", "shard_map"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_of_eight_gets_its_own_utterances(dtype: str, way: str) -> None:
    """Nothing travels but the value and the weights' gradients, added up at once for each dtype."""
    step = compiled(dtype, 8, way)
    for name in ("arc_log_probs", "logit_gradients"):
        assert f"{{{DTYPES[dtype]}[{B},{T},{U + 1},{V}]" in step.calls[name]
    assert step.collectives == {"all-reduce": 1 if dtype == "float32" else 2}


@pytest.mark.parametrize("way", ["explicit", "shard_map"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_of_eight_takes_the_memory_of_its_logits_once(dtype: str, way: str) -> None:
    step = compiled(dtype, 8, way)
    assert "output_to_operand_aliasing={{}: (0, {})}" in step.calls["logit_gradients"]
    assert 1 <= step.temp_over_logits <= 1.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_jit_over_eight_takes_the_memory_of_its_logits_twice_at_most(dtype: str) -> None:
    """XLA's partitioner loses the alias: the gradient is beside the logits."""
    assert 1 <= compiled(dtype, 8, "jit").temp_over_logits <= 2.1


if __name__ == "__main__":
    compile_step(sys.argv[1], int(sys.argv[2]), sys.argv[3])
