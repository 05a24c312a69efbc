"""Sphinx configuration: `sphinx-build -W -n docs docs/_build`."""

import inspect

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

import jax_mbrnnt

project = "jax_mbrnnt"
release = jax_mbrnnt.__version__
copyright = "the jax_mbrnnt authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # Docstrings write `x` for code.
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Shapes and dtypes stand in the docstrings and say more.
nitpicky = True
# Types of fields and arguments: no build reads other sites.
nitpick_ignore_regex = [("py:class", r"(jax|collections\.abc)\..*")]


def check_everything_is_documented(app: Sphinx, env: BuildEnvironment) -> None:
    """Fails the build if a public name has no docstring or no entry in `api.md`."""
    described = env.get_domain("py").objects
    for name in jax_mbrnnt.__all__:
        if f"jax_mbrnnt.{name}" not in described:
            raise ExtensionError(f"jax_mbrnnt.{name} is public and not in docs/api.md")
        if not inspect.getdoc(getattr(jax_mbrnnt, name)):
            raise ExtensionError(f"jax_mbrnnt.{name} is public and has no docstring")


def _inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _displayed_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    # Browsers draw MathML by themselves: no script, and nothing from another site.
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_displayed_formula, None))
    app.connect("env-check-consistency", check_everything_is_documented)
