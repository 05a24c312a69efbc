"""Sphinx configuration: `sphinx-build -W -n docs docs/_build`."""

import inspect

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

import jax_mbrnnt

project = "jax_mbrnnt"
release = jax_mbrnnt.__version__
copyright = "the jax_mbrnnt authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # Docstrings write `x` for code.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Shapes and dtypes stand in the docstrings and say more.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"jax\..*")]  # Fields' types; no build reads other sites.


def check_everything_is_documented(app: Sphinx, env: BuildEnvironment) -> None:
    """Fails the build if a public name has no docstring or no entry in `api.md`."""
    described = env.get_domain("py").objects
    for name in jax_mbrnnt.__all__:
        if f"jax_mbrnnt.{name}" not in described:
            raise ExtensionError(f"jax_mbrnnt.{name} is public and not in docs/api.md")
        if not inspect.getdoc(getattr(jax_mbrnnt, name)):
            raise ExtensionError(f"jax_mbrnnt.{name} is public and has no docstring")


def setup(app: Sphinx) -> None:
    app.connect("env-check-consistency", check_everything_is_documented)
