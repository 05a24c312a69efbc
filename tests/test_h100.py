"""What does XLA's GPU compiler make of a train step? An opt-in check that needs no GPU.

It runs where JAX's CUDA plugin is installed (`pip install --no-deps jax-cuda13-plugin
jax-cuda13-pjrt`, of the same version as jax) and CUDA_HOME names a CUDA toolkit.
"""

import importlib.util
import math
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


pytestmark = [
    pytest.mark.skipif("cuda" not in _ffi.MODULES, reason="built without CUDA kernels"),
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None or CUDA_HOME is None,
        reason="needs jax-cuda13-plugin, jax-cuda13-pjrt and CUDA_HOME",
    ),
]
B, T, U, V, H = 16, 400, 100, 1024, 640
CHUNK_FRAMES = 7  # of the joint loss by default, in bfloat16: 24 MB of logits
BIG_BLANKS = (2, 4, 8)


def compile_step(which: str, dtype: str) -> None:
    """Prints the program of a train step with its gradient, then its memory.

    `product`: of `logits = h @ W + b`; `joint`: of a joint network, by chunks.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from jax_mbrnnt import multiblank_rnnt_joint_loss, multiblank_rnnt_loss

    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    device = SingleDeviceSharding(topology.devices[0])

    def operand(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def product(params, hidden, predicted, *utterances):
        del predicted
        logits = hidden @ params[0] + params[1]
        return multiblank_rnnt_loss(logits, *utterances, big_blank_durations=BIG_BLANKS).mean()

    def by_chunks(params, encoded, predicted, *utterances):
        def joint(params, encoded, predicted):
            hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
            return hidden @ params[0] + params[1]

        return multiblank_rnnt_joint_loss(
            joint,
            *(params, encoded, predicted, *utterances),
            chunk_frames=CHUNK_FRAMES,
            big_blank_durations=BIG_BLANKS,
        ).mean()

    loss = {"product": product, "joint": by_chunks}[which]
    first = operand(B, T, U + 1, H) if which == "product" else operand(B, T, H)
    integers = [operand(*shape, dtype="int32") for shape in ((B, U), (B,), (B,))]
    operands = (operand(H, V), operand(V)), first, operand(B, U + 1, H), *integers
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    compiled = step.trace(*operands).lower(lowering_platforms=("cuda",)).compile()
    print(compiled.as_text())
    print("temp =", compiled.memory_analysis().temp_size_in_bytes)


def compiled(which: str, dtype: str) -> tuple[str, dict[str, list[str]], int]:
    """The program, the lines of each kernel's calls in it, and its temporary memory."""
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
        [sys.executable, __file__, which, dtype], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    calls: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        for name, target in _ffi.TARGETS.items():
            if f'custom_call_target="{target}"' in line:
                calls.setdefault(name, []).append(line)
    assert calls.keys() == {"arc_log_probs", "lattice", "logit_gradients"}
    (temporary,) = re.findall(r"^temp = (.*)", run.stdout, re.MULTILINE)
    return run.stdout, calls, int(temporary)


def itemsize(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2}[dtype]


IN_PLACE = "output_to_operand_aliasing={{}: (0, {})}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_takes_the_memory_of_its_logits_once(dtype: str) -> None:
    _, calls, temporary = compiled("product", dtype)
    (call,) = calls["logit_gradients"]
    assert IN_PLACE in call
    # The logits, which their gradient overwrites, and a few numbers a node.
    assert 1 <= temporary / (B * T * (U + 1) * V * itemsize(dtype)) <= 1.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joint_takes_the_memory_of_a_chunk(dtype: str) -> None:
    """Its logits once, of its hidden activations two, and 5 % of all logits."""
    program, calls, temporary = compiled("joint", dtype)
    (call,) = calls["logit_gradients"]
    assert IN_PLACE in call
    nodes = B * (U + 1) * itemsize(dtype)
    chunk, logits = CHUNK_FRAMES * nodes * V, T * nodes * V
    hidden = CHUNK_FRAMES * nodes * H
    assert chunk <= temporary <= chunk + 2 * hidden + 0.05 * logits

    # Two products and the gradient's kernel write arrays of the chunk's size, and nothing else.
    name = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    size = chunk // itemsize(dtype)
    writers = []
    for result, kind in re.findall(r"^ *%\S+ = (\S+).*? ([\w-]+)\(", program, re.MULTILINE):
        shape = re.match(rf"{name}\[([\d,]+)\]", result.removeprefix("("))
        elements = math.prod(int(n) for n in shape[1].split(",")) if shape else 0
        if elements >= size and kind not in ("bitcast", "get-tuple-element", "parameter"):
            writers.append(kind)
    assert set(writers) <= {"custom-call"}
    assert len(writers) == 3


if __name__ == "__main__":
    compile_step(*sys.argv[1:])
