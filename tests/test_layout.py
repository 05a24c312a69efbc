"""Does every file import and include only what its room may?"""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jax_mbrnnt"

# What the rooms of the package, modules and packages, may import of each other. A new room needs
# a line here; a file that differs from the others of its room has one of its own.
MODULES: dict[str, set[str]] = {
    "arcs": set(),
    "_mesh": set(),
    "_padding": set(),
    "_program": set(),
    "_stages": {"arcs"},
    "_reference": {"_mesh", "_stages", "arcs"},
    "_ffi": {"_cpu", "_cuda"},
    "_primitives": {"_ffi", "_mesh", "_reference", "_stages", "arcs"},
    "_numbers": {"_mesh", "_primitives", "_reference", "_stages"},
    "_checks": {"_mesh", "_stages", "arcs"},
    "_loss": {"_checks", "_mesh", "_numbers", "_primitives", "_reference", "_stages"},
    "_chunks": {"_checks", "_mesh", "_padding", "_program", "_reference", "_stages"},
    "_joint_loss": {
        *("_checks", "_chunks", "_loss", "_mesh", "_numbers", "_padding"),
        *("_primitives", "_program", "_reference", "_stages"),
    },
    "lattice": {"_checks", "_loss", "_primitives", "_reference", "_stages", "arcs"},
    "alignment": {"_loss", "_reference", "_stages", "arcs", "lattice"},
    "transducers/transducer": {
        *("_checks", "_chunks", "_joint_loss", "_loss", "_numbers", "_stages"),
        *("alignment", "arcs"),
    },
    "transducers": {"arcs"},  # one file a transducer: it names no stage and no loss
    "decoding": {"_checks", "_mesh", "_program", "_stages", "arcs", "transducers"},
    "__init__": {"alignment", "arcs", "decoding", "lattice", "transducers"},
    "__main__": {"_checks", "_ffi"},
}
KNOW_NO_JAX = {"arcs", "transducers"}
STANDARD_HEADER = r"<(sys/)?[a-z_0-9]+(\.h)?>"  # of C++ or POSIX, none of a framework's

# What the C++ files may include. The first pattern that a file's path matches counts.
INCLUDES: dict[str, str] = {
    r"lattice/.*": r"<(cmath|cstdint)>|\"lattice/.*\"",
    r"ffi/.*": rf"{STANDARD_HEADER}|\"(lattice|ffi)/.*\"|\"xla/ffi/api/.*\"",
    r"cpu/binding\.cc": rf"{STANDARD_HEADER}|\"(ffi|cpu)/.*\"|[<\"]nanobind/.*[>\"]",
    r"cpu/.*": rf"{STANDARD_HEADER}|\"(lattice|cpu)/.*\"",
    r"cuda/binding\.cc": rf"{STANDARD_HEADER}|\"(ffi|cuda)/.*\"|[<\"]nanobind/.*[>\"]",
    r"cuda/room\.h": rf"{STANDARD_HEADER}|\"(ffi|cuda)/.*\"",
    r"cuda/.*": rf"{STANDARD_HEADER}|\"(lattice|cuda)/.*\"|<cuda.*>",
}

PYTHON = sorted(PACKAGE.glob("**/*.py"))
CPP = sorted(
    path
    for room in ("lattice", "ffi", "cpu", "cuda")
    for path in (ROOT / room).glob("**/*")
    if path.suffix in {".h", ".cc", ".cu", ".cuh"}
)


def imports(path: pathlib.Path) -> set[str]:
    """Absolute names of everything a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["jax_mbrnnt" if node.level else "", node.module]))
            # `from package import name`: the name may be a module.
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: pathlib.Path) -> str:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return name if name in MODULES else name.split("/")[0]


def test_all_rooms_are_here() -> None:
    rooms = {relative(path).split("/")[0] for path in CPP}
    assert rooms == {"lattice", "ffi", "cpu", "cuda"}
    assert {room(path) for path in PYTHON} == set(MODULES)


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_imports(path: pathlib.Path) -> None:
    names = imports(path)
    own = {name.split(".")[1] for name in names if name.startswith("jax_mbrnnt.")}
    home = path.relative_to(PACKAGE).parts[0]
    assert (own & (MODULES.keys() | {"_cpu", "_cuda"})) - {home} <= MODULES[room(path)]
    others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    allowed = {"jax_mbrnnt", "numpy"} | (set() if room(path) in KNOW_NO_JAX else {"jax"})
    assert others <= allowed


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_nothing_private_of_jax(path: pathlib.Path) -> None:
    private = {name for name in imports(path) if re.match(r"jax(lib)?\..*\b_", name)}
    assert private == set()


@pytest.mark.parametrize("path", CPP, ids=relative)
def test_includes(path: pathlib.Path) -> None:
    name = relative(path)
    allowed = next(pattern for room, pattern in INCLUDES.items() if re.fullmatch(room, name))
    included = re.findall(r"^\s*#\s*include\s*(\S+)", path.read_text(), re.MULTILINE)
    assert [header for header in included if not re.fullmatch(allowed, header)] == []
