"""Do the examples in the docs run? Docstrings of public names, and the pages' Python blocks."""

import doctest
import pathlib
import re
import runpy
from collections.abc import Iterator

import jax
import pytest

import jax_mbrnnt

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
NEEDS = {"equinox.md": "equinox"}  # what a page shows and the tests do not install


@pytest.fixture(autouse=True)
def as_its_reader_writes() -> Iterator[None]:
    """`hidden @ kernel + bias`: the examples run as they would by JAX's defaults."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", jax_mbrnnt.__all__)
def test_docstring(name: str) -> None:
    public = getattr(jax_mbrnnt, name)
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(exclude_empty=False).find(public, name, globs={}):
        runner.run(example)
    assert runner.summarize().failed == 0
    assert public.__doc__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: pathlib.Path) -> None:
    """The blocks of a page build on one another."""
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)


@pytest.mark.parametrize("name", ["lattice", "rivals"])
def test_picture(name: str, tmp_path: pathlib.Path) -> None:
    """Its program still draws it: with the names of the package, of the results kept."""
    picture = tmp_path / "picture.png"
    runpy.run_path(str(ROOT / "docs" / "pictures" / f"{name}.py"))["main"](picture)
    assert picture.stat().st_size > 10_000
