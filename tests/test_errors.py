"""Does every wrong argument fail early, with its name, what was expected and what came?"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from cases import Case, random_case
from jax_mbrnnt import (
    Arc,
    MultiblankRNNT,
    arc_posteriors,
    lattice_loss,
    multiblank_rnnt_loss,
    rnnt_arcs,
    rnnt_loss,
    tdt_arcs,
    tdt_loss,
)

B, T, U, V = 2, 5, 3, 8


def abstract(shape: Sequence[int], dtype: Any = "int32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


CASE = Case(abstract((B, T, U + 1, V), "float32"), abstract((B, U)), abstract((B,)), abstract((B,)))


def in_order(*words: object) -> str:
    """A pattern that finds the words one after the other."""
    return r"(?s)" + ".*".join(re.escape(str(word)) for word in words)


def trace(function: Any, case: Sequence[Any] = CASE, **options: Any) -> Any:
    return jax.eval_shape(lambda *operands: function(*operands, **options), *case)


METHODS = [
    getattr(MultiblankRNNT(), name)
    for name in ("__call__", "score_forward", "cost_and_grad", "arc_log_probs", "posteriors")
]


def tdt_loss_of_one_duration(*operands: Any) -> jax.Array:
    return tdt_loss(*operands, durations=(1,))


def test_what_is_right_is_accepted() -> None:
    assert trace(multiblank_rnnt_loss, big_blank_durations=(2, 4)).shape == (B,)
    assert trace(tdt_loss, durations=(0, 1, 2)).shape == (B,)


# Operands, at trace time. The second column is what the message says, in this order.
OPERANDS = {
    "logits of integers": (
        {"logits": abstract((B, T, U + 1, V), "int32")},
        (TypeError, "logits", "float32", "int32"),
    ),
    "logits of complex numbers": (
        {"logits": abstract((B, T, U + 1, V), "complex64")},
        (TypeError, "logits", "float32", "complex64"),
    ),
    "logits of 8-bit floats": (
        {"logits": abstract((B, T, U + 1, V), "float8_e4m3fn")},
        (TypeError, "logits", "float32", "float8_e4m3fn"),
    ),
    "labels of floats": (
        {"labels": abstract((B, U), "float32")},
        (TypeError, "labels", "integer", "float32"),
    ),
    "labels of booleans": (
        {"labels": abstract((B, U), "bool")},
        (TypeError, "labels", "integer", "bool"),
    ),
    "logit lengths of floats": (
        {"logit_lengths": abstract((B,), "float32")},
        (TypeError, "logit_lengths", "integer", "float32"),
    ),
    "label lengths of floats": (
        {"label_lengths": abstract((B,), "float64")},
        (TypeError, "label_lengths", "integer", "float64"),
    ),
    "logits without frames": (
        {"logits": abstract((U + 1, V), "float32")},
        (ValueError, "logits", "4, 8"),
    ),
    "logits without classes": (
        {"logits": abstract((B, T, U + 1, 0), "float32")},
        (ValueError, "logits", "2, 5, 4, 0"),
    ),
    "labels of another size": (
        {"labels": abstract((B, U + 1))},
        (ValueError, "labels", "2, 3", "2, 4"),
    ),
    "labels of another batch": (
        {"labels": abstract((B + 1, U))},
        (ValueError, "labels", "2, 3", "3, 3"),
    ),
    "labels without a batch": ({"labels": abstract((U,))}, (ValueError, "labels", "2, 3", "3")),
    "logit lengths of another batch": (
        {"logit_lengths": abstract((B + 1,))},
        (ValueError, "logit_lengths", "2", "3"),
    ),
    "logit lengths without a batch": (
        {"logit_lengths": abstract(())},
        (ValueError, "logit_lengths", "2", "()"),
    ),
    "label lengths of another rank": (
        {"label_lengths": abstract((B, 1))},
        (ValueError, "label_lengths", "2", "2, 1"),
    ),
}


@pytest.mark.parametrize(("wrong", "error"), OPERANDS.values(), ids=OPERANDS.keys())
@pytest.mark.parametrize(
    "function",
    [multiblank_rnnt_loss, rnnt_loss, tdt_loss_of_one_duration, *METHODS],
)
def test_operands(function: Any, wrong: dict[str, Any], error: tuple[Any, ...]) -> None:
    with pytest.raises(error[0], match=in_order(*error[1:])):
        trace(function, CASE._replace(**wrong))


# Options, at trace time.
OPTIONS = {
    "blank_id too large": ({"blank_id": V}, ("blank_id", "8")),
    "blank_id too small": ({"blank_id": -V - 1}, ("blank_id", "-9")),
    "blank_id that leaves no class for the big blanks": (
        {"blank_id": 1, "big_blank_durations": (2, 3)},
        ("blank_id", "1"),
    ),
    "more big blanks than classes": (
        {"big_blank_durations": tuple(range(2, 2 + V))},
        ("blank_id", "8"),
    ),
    "big blank of one frame": ({"big_blank_durations": (2, 1)}, ("big_blank_durations", "2", "1")),
    "big blank of no frames": ({"big_blank_durations": (0,)}, ("big_blank_durations", "2", "0")),
    "big blank of fewer": ({"big_blank_durations": (-2,)}, ("big_blank_durations", "2", "-2")),
    "big blanks alike": ({"big_blank_durations": (2, 4, 2)}, ("big_blank_durations", "(2, 4, 2)")),
    "negative clamp": ({"clamp": -0.1}, ("clamp", "-0.1")),
    "clamp of NaN": ({"clamp": np.nan}, ("clamp", "nan")),
    "infinite clamp": ({"clamp": np.inf}, ("clamp", "inf")),
    "sigma of NaN": ({"sigma": np.nan}, ("sigma", "nan")),
    "infinite sigma": ({"sigma": -np.inf}, ("sigma", "-inf")),
    "lambda of NaN": ({"fastemit_lambda": np.nan}, ("fastemit_lambda", "nan")),
    "infinite lambda": ({"fastemit_lambda": np.inf}, ("fastemit_lambda", "inf")),
    "infinite sigma in float32": ({"sigma": 1e39}, ("sigma", "float32", "1e+39")),
    "clamp that float32 takes for 0": ({"clamp": 1e-39}, ("clamp", "1.18e-38", "1e-39")),
    "lambda below -1": ({"fastemit_lambda": -1.001}, ("fastemit_lambda", "-1", "-1.001")),
    "unknown implementation": ({"implementation": "cuda"}, ("implementation", "xla", "cuda")),
}


@pytest.mark.parametrize(("wrong", "words"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options(wrong: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=in_order(*words)):
        trace(multiblank_rnnt_loss, **wrong)


@pytest.mark.parametrize(("wrong", "words"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options_of_the_model(wrong: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=in_order(*words)):
        trace(MultiblankRNNT(**wrong).score_forward)


# What is no number, or no integer.
NO_NUMBERS: dict[str, Any] = {
    "blank_id": 1.0,
    "big_blank_durations": (2, 2.5),
    "sigma": "small",
    "fastemit_lambda": None,
    "clamp": [1.0],
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_options_of_another_type(name: str) -> None:
    expected = "an integer" if "blank" in name else "a number"
    with pytest.raises(TypeError, match=rf"{name}.*: expected {expected}.*, got"):
        trace(multiblank_rnnt_loss, **{name: NO_NUMBERS[name]})


def test_options_that_are_traced() -> None:
    """Numbers may be; what is no scalar, or decides which program there is, may not."""
    with pytest.raises(TypeError, match=r"sigma: expected a number, got float32\[2\]"):
        jax.jit(lambda sigma: multiblank_rnnt_loss(*CASE_OF_ZEROS, sigma=sigma))(
            np.zeros(2, np.float32)
        )
    with pytest.raises(TypeError, match="blank_id: expected an integer, got"):
        jax.jit(lambda blank: multiblank_rnnt_loss(*CASE_OF_ZEROS, blank_id=blank))(1)
    with pytest.raises(TypeError, match=r"durations\[1\]: expected an integer, got 1.5"):
        tdt_arcs((0, 1.5))  # type: ignore[arg-type]


CASE_OF_ZEROS = np.zeros((2, 2, 4), np.float32), np.zeros(1, np.int32)


@pytest.mark.parametrize("name", ["logit_lengths", "label_lengths"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_paddings_in_the_place_of_lengths(name: str, dtype: str) -> None:
    """As `optax.ctc_loss` has them: `[B, T]`, 1 where there is nothing."""
    paddings = np.zeros((B, T if name == "logit_lengths" else U), dtype)
    error = ValueError if dtype == "int32" else TypeError
    with pytest.raises(error, match=rf"{name}: .* \(lengths, not paddings: \(1 - paddings\)"):
        trace(rnnt_loss, CASE._replace(**{name: paddings}))


# Methods without a derivative.


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("transform", ["reverse", "forward"])
@pytest.mark.parametrize("method", ["score_forward", "cost_and_grad"])
def test_methods_without_a_derivative(
    method: str, transform: str, implementation: Any, jit: bool
) -> None:
    """The error says what to call in their place."""
    logits, labels = CASE_OF_ZEROS

    def loss(x: jax.Array) -> jax.Array:
        function = getattr(MultiblankRNNT(implementation=implementation), method)
        return jax.tree.leaves(function(x, labels))[0]

    derivative = jax.grad(loss) if transform == "reverse" else jax.jacfwd(loss)
    with pytest.raises(NotImplementedError, match=rf"{method}: .*criterion\(logits, labels, "):
        (jax.jit(derivative) if jit else derivative)(jnp.asarray(logits))
    found = jax.vmap(loss)(jnp.zeros((3, *logits.shape), jnp.float32))
    np.testing.assert_array_equal(found, np.broadcast_to(loss(jnp.asarray(logits)), 3))


# Arc tables.


@pytest.mark.parametrize("function", [lattice_loss, arc_posteriors])
@pytest.mark.parametrize(
    ("shape", "arcs", "words"),
    [
        ((B, T, U + 1, 3), rnnt_arcs(), ("arc_log_probs", "2", "3")),
        ((T, 2), rnnt_arcs(), ("arc_log_probs", "5, 2")),
        ((B, T, U + 1, 1), (Arc(0, False),), ("arcs", "0")),
        ((B, T, U + 1, 2), (Arc(-1, True), Arc(1, False)), ("arcs", "-1")),
        ((B, T, U + 1, 0), (), ("arcs",)),
    ],
)
def test_arc_tables(
    function: Any, shape: tuple[int, ...], arcs: tuple[Arc, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=in_order(*words)):
        trace(function, [abstract(shape, "float32")], arcs=arcs)


def test_arc_log_probs_of_integers() -> None:
    with pytest.raises(TypeError, match=in_order("arc_log_probs", "float32", "int32")):
        trace(lattice_loss, [abstract((T, U + 1, 2))], arcs=rnnt_arcs())


# Values of concrete operands: argument, index, expected, got.
VALUES = {
    "label below": ("labels", (1, 2), -1, ("labels[1, 2]", "8", "-1")),
    "label above": ("labels", (0, 1), V, ("labels[0, 1]", "8", "8")),
    "label that is the blank": ("labels", (0, 1), V - 1, ("labels[0, 1]", "none of the bl", "7")),
    "logit length below": ("logit_lengths", (1,), -1, ("logit_lengths[1]", "5", "-1")),
    "logit length above": ("logit_lengths", (0,), T + 1, ("logit_lengths[0]", "5", "6")),
    "label length below": ("label_lengths", (1,), -2, ("label_lengths[1]", "3", "-2")),
    "label length above": ("label_lengths", (0,), U + 1, ("label_lengths[0]", "3", "4")),
}
PARAMETRIZE_VALUES = pytest.mark.parametrize(
    ("operand", "index", "value", "words"), VALUES.values(), ids=VALUES.keys()
)


def wrong_value(operand: str, index: tuple[int, ...], value: int) -> Case:
    case = random_case(40, (B,), T, U, V, ragged=False, dtype=np.float32)
    getattr(case, operand)[index] = value
    return case


@PARAMETRIZE_VALUES
@pytest.mark.parametrize(
    "function",
    [
        multiblank_rnnt_loss,
        rnnt_loss,
        *METHODS,
    ],
)
def test_concrete_values(
    function: Any, operand: str, index: tuple[int, ...], value: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=in_order(*words)):
        function(*wrong_value(operand, index, value))


@pytest.mark.parametrize(("operand", "index", "value", "words"), list(VALUES.values())[3:])
def test_concrete_lengths_of_a_lattice(
    operand: str, index: tuple[int, ...], value: int, words: tuple[str, ...]
) -> None:
    case = wrong_value(operand, index, value)
    with pytest.raises(ValueError, match=in_order(*words)):
        lattice_loss(np.zeros((B, T, U + 1, 2), np.float32), *case[2:], arcs=rnnt_arcs())


def test_concrete_values_are_checked_while_logits_are_differentiated() -> None:
    case = wrong_value("labels", (1, 0), V)
    with pytest.raises(ValueError, match=in_order("labels[1, 0]", V)):
        jax.grad(lambda logits: multiblank_rnnt_loss(logits, *case[1:]).sum())(case.logits)


def test_concrete_labels_in_the_padding_are_not_checked() -> None:
    case = wrong_value("labels", (1, U - 1), 99)
    case.label_lengths[1] = U - 1
    assert np.all(np.isfinite(multiblank_rnnt_loss(*case)))


# The same under jit, by checkify.


@PARAMETRIZE_VALUES
def test_checkify_names_the_value(
    operand: str, index: tuple[int, ...], value: int, words: tuple[str, ...]
) -> None:
    checked = jax.jit(checkify.checkify(MultiblankRNNT().checked))
    error, losses = checked(*wrong_value(operand, index, value))
    message = error.get()
    assert message is not None
    assert operand in message
    assert str(value) in message
    assert np.isnan(losses[index[0]])
    with pytest.raises(checkify.JaxRuntimeError, match=operand):
        error.throw()


def test_checkify_passes_what_is_right() -> None:
    case = random_case(41, (B,), T, U, V, dtype=np.float32)
    checked = jax.jit(checkify.checkify(MultiblankRNNT().checked))
    error, losses = checked(*case)
    assert error.get() is None
    np.testing.assert_array_equal(losses, multiblank_rnnt_loss(*case))


def test_checkify_of_a_gradient() -> None:
    def gradient(logits: jax.Array, *rest: jax.Array) -> jax.Array:
        return jax.grad(lambda x: MultiblankRNNT().checked(x, *rest).sum())(logits)

    error, _ = jax.jit(checkify.checkify(gradient))(*wrong_value("labels", (1, 0), V))
    assert "labels" in (error.get() or "")
