"""Functions of the caller's (a joint, a prediction network) in programs of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def trace(function: Callable[..., Any], *operands: Any) -> tuple[Any, Any]:
    """The closed jaxpr of `function`, and the shapes and dtypes that it returns.

    Traced at every call: what a function reads beside its arguments (a global, an attribute, a
    module's parameters) may have changed since the last, and JAX remembers functions by identity.
    """
    return jax.make_jaxpr(lambda *operands: function(*operands), return_shape=True)(*operands)


def run(function: Callable[..., Any], *operands: Any) -> Any:
    """`function(*operands)`, compiled as one program.

    All arrays of JAX that the function reads are operands of the program, those that it closes
    over as well: a caller may differentiate by them, and nothing holds them, or the function,
    afterwards.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return function(*operands)
    closed, shapes = trace(function, *operands)
    jaxpr, structure = closed.jaxpr, jax.tree.structure(shapes)
    arrays = [x if isinstance(x, jax.Array) else None for x in closed.consts]
    # The program's own, as JAX has it: small tables, which need no transfer of their own.
    of_numpy = [None if isinstance(x, jax.Array) else x for x in closed.consts]

    def program(arrays: Any, operands: Any) -> Any:
        consts = [x if y is None else y for x, y in zip(arrays, of_numpy, strict=True)]
        results = jax.core.eval_jaxpr(jaxpr, consts, *jax.tree.leaves(operands))
        return jax.tree.unflatten(structure, results)

    return jax.jit(program)(arrays, operands)
