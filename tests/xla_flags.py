"""What the tests ask of XLA: on a CPU nearly all of their time is its compiler's.

Processes that tests start inherit it, but for those of test_processes.py and test_h100.py, which
name flags of their own. .ci/smoke.py runs by XLA's defaults.
"""

import importlib.metadata

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"


def quick_to_compile() -> list[str]:
    """In half the time: one module of LLVM's for a program, and fusions without MLIR's passes."""
    jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    one_module = "--xla_cpu_parallel_codegen_split_count=1"
    # Newer ones have no other way, and stop at a flag that they do not know.
    old_fusions = ["--xla_cpu_use_fusion_emitters=false"] if jaxlib < (0, 11) else []
    return [one_module, *old_fusions]
