"""What does XLA's GPU compiler make of a train step? An opt-in check that needs no GPU.

It runs where JAX's CUDA plugin is installed (`pip install --no-deps jax-cuda13-plugin
jax-cuda13-pjrt`, of the same version as jax) and CUDA_HOME names a CUDA toolkit.
"""

import importlib.util
import os
import re
import subprocess
import sys

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


def compile_step(dtype: str) -> None:
    """Prints the program of `logits = h @ W + b` with its gradient, then its memory."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from jax_mbrnnt import multiblank_rnnt_loss

    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    device = SingleDeviceSharding(topology.devices[0])
    B, T, U, V, H = 16, 400, 100, 1024, 640

    def operand(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def mean_loss(weights, bias, hidden, labels, *lengths):
        logits = hidden @ weights + bias
        losses = multiblank_rnnt_loss(logits, labels, *lengths, big_blank_durations=(2, 4, 8))
        return losses.mean()

    lengths = operand(B, dtype="int32")
    operands = operand(H, V), operand(V), operand(B, T, U + 1, H), operand(B, U, dtype="int32")
    step = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1, 2)))
    lowered = step.trace(*operands, lengths, lengths).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile()
    print(compiled.as_text())
    logits_size = B * T * (U + 1) * V * jnp.dtype(dtype).itemsize
    print("temp / logits =", compiled.memory_analysis().temp_size_in_bytes / logits_size)


@pytest.mark.skipif("cuda" not in _ffi.MODULES, reason="built without CUDA kernels")
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None or CUDA_HOME is None,
    reason="needs jax-cuda13-plugin, jax-cuda13-pjrt and CUDA_HOME",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_takes_the_memory_of_its_logits_once(dtype: str) -> None:
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
        [sys.executable, __file__, dtype], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    calls = {
        name: line
        for line in run.stdout.splitlines()
        for name, target in _ffi.TARGETS.items()
        if f'custom_call_target="{target}"' in line
    }
    assert calls.keys() == {"arc_log_probs", "lattice", "logit_gradients"}
    assert "output_to_operand_aliasing={{}: (0, {})}" in calls["logit_gradients"]
    (ratio,) = re.findall(r"temp / logits = (.*)", run.stdout)
    # The logits, which their gradient overwrites, and a few numbers a node.
    assert 1 <= float(ratio) <= 1.05


if __name__ == "__main__":
    compile_step(sys.argv[1])
