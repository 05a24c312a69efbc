"""What every test runs under: float64 allowed, strict dtype promotion, eight CPU devices.

`--backend` says whose kernels the tests of values run over: those of the CPU, the CUDA sources
executed on the CPU ("simt"), or a GPU's.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import xla_flags

# Read once, when JAX starts its backend: this has to stand before the first import of jax.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), xla_flags.EIGHT_DEVICES, *xla_flags.quick_to_compile()]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

import simt_module
from examples import EXAMPLES

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples may compile, hence no deadline. The same examples every run; HYPOTHESIS_PROFILE=explore
# looks for new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# The files whose tests are of values, and so run over any backend's kernels.
OF_VALUES = {
    "test_alignment",
    "test_alignment_edges",
    "test_arcs",
    "test_digits",
    "test_edges",
    "test_edges_of_lengths",
    "test_edges_of_numbers",
    "test_enumeration",
    "test_fuzz",
    "test_joint",
    "test_joint_callers",
    "test_joint_programs",
    "test_kernels",
    "test_large",
    "test_laws",
    "test_model",
    "test_oracle",
    "test_poison",
    "test_precision",
    "test_transforms",
}

# The longest come first, so that no worker is left with one of them at the end.
FIRST = ["test_sentences", "test_example", "test_native", "test_cuda_build"]

# Their tests are few, and take long; most come last, for whoever has nothing to do.
LONG = {
    "test_cuda_build",
    "test_example",
    "test_h100",
    "test_joint",
    "test_joint_programs",
    "test_explicit_meshes",
    "test_matrix",
    "test_misfits",
    "test_native",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=["cpu", "simt", "gpu"],
        default="cpu",
        help="whose kernels: cpu, simt (CUDA sources executed on the CPU), gpu",
    )


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("backend")
    if backend != "gpu":  # for the same reason as xla_flags.py
        jax.config.update("jax_disable_most_optimizations", True)
    if backend == "gpu":
        jax.config.update("jax_platforms", "cuda,cpu")
        # Without a GPU the tests would pass on the CPU.
        if jax.default_backend() != "gpu" and not config.option.collectonly:
            raise pytest.UsageError("--backend=gpu: JAX finds no GPU")
    if backend == "simt":
        if not hasattr(config, "workerinput"):  # the workers find it built
            simt_module.build()
        simt_module.take_the_place_of_the_cpu_kernels()


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Not even imported: a machine with a GPU may lack what the other tests need."""
    name = collection_path.stem
    of_the_cpu = name.startswith("test_") and name not in OF_VALUES
    return True if of_the_cpu and config.getoption("backend") != "cpu" else None


def _turn(item: pytest.Item) -> int:
    file = item.path.stem
    return FIRST.index(file) - len(FIRST) if file in FIRST else int(file in LONG)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    if config.getoption("backend") == "cpu":
        return

    def is_of_the_twin(item: pytest.Item) -> bool:
        case = getattr(item, "callspec", None)
        return case is not None and case.params.get("implementation") == "xla"

    config.hook.pytest_deselected(items=list(filter(is_of_the_twin, items)))
    items[:] = [item for item in items if not is_of_the_twin(item)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file have programs in common: one worker runs them, and compiles them once.

    Those of `LONG` files have not, and are left for whoever has nothing to do.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # by their number of tests

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return nodeid if pathlib.Path(file).stem in LONG else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_forgotten() -> Iterator[None]:
    """Every program maps memory. Linux allows 65,530 mappings; beyond, the compiler crashes."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def as_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples can be imported, and run under JAX's own rules."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which processes compile once what they have in common."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the other workers' too
    return {
        "JAX_COMPILATION_CACHE_DIR": str(root / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def programs_in_common(compilation_cache: dict[str, str]) -> Iterator[None]:
    """The processes that a module's tests start have them, and compile as quickly as the tests."""
    with pytest.MonkeyPatch.context() as patch:
        unoptimized = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
        for name, value in (compilation_cache | unoptimized).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["ffi", "xla"])
def implementation(request: pytest.FixtureRequest) -> str:
    """The `implementation` argument of the public functions."""
    return str(request.param)
