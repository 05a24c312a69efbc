"""Do we agree with implementations that are not ours? See oracle/README.md."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from cases import Array, Case, Implementation, assert_close, compiled, jitted, losses_and_gradients
from enumeration import log_softmax
from jax_mbrnnt import (
    Arc,
    lattice_loss,
    multiblank_rnnt_loss,
    rnnt_loss,
    tdt_arcs,
)

Fields = dict[str, Array]


def load(file: str) -> list[Fields]:
    cases: dict[str, Fields] = {}
    with np.load(pathlib.Path(__file__).parent / "oracle" / file) as arrays:
        for key in arrays.files:
            number, field = key.split("/")
            cases.setdefault(number, {})[field] = arrays[key]
    return [cases[number] for number in sorted(cases)]


def name(case: Fields) -> str:
    return str(case["name"])


def durations(case: Fields) -> tuple[int, ...]:
    return tuple(case["durations"].astype(int).tolist())


def options(case: Fields, *names: str) -> dict[str, Any]:
    return {"blank_id": int(case["blank_id"]), **{name: float(case[name]) for name in names}}


def operands(case: Fields, dtype: str) -> Case:
    logits = case["logits"].astype(dtype)
    return Case(logits, case["labels"], case["logit_lengths"], case["label_lengths"])


def gather(log_probs: Array, labels: Array, classes: list[int | None]) -> Array:
    """Arc log-probs `[B, T, U+1, A]` out of `[B, T, U+1, V]`; class None is the next label's."""
    B, T, U1, _ = log_probs.shape
    gathered = np.full((B, T, U1, len(classes)), -np.inf)
    for arc, v in enumerate(classes):
        if v is not None:
            gathered[..., arc] = log_probs[..., v]
        else:
            for b, u in np.ndindex(labels.shape):
                gathered[b, :, u, arc] = log_probs[b, :, u, labels[b, u]]
    return gathered


def costs(case: Fields, lattice_losses: jax.Array) -> Array:
    """FastEmit's scale, which the lattice knows nothing of."""
    scale: Array = 1 + case["fastemit_lambda"]
    return scale * np.asarray(lattice_losses)


MULTIBLANK, RNNT, TDT = map(load, ["multiblank.npz", "rnnt.npz", "tdt.npz"])
REPEATED = [case for case in MULTIBLANK if len(set(durations(case))) < len(durations(case))]
DISTINCT = [case for case in MULTIBLANK if len(set(durations(case))) == len(durations(case))]
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}


# "xla", slow to compile, runs every case in float64 and these in float32 as well.
HARD = ("T1", "U_gt_T", "longT", "longU", "huge_logits", "huge", "tiny_clamp")


def runs(cases: list[Fields]) -> pytest.MarkDecorator:
    """Every case, dtype and implementation."""
    return pytest.mark.parametrize(
        ("case", "dtype", "implementation"),
        [
            pytest.param(case, dtype, implementation, id=f"{name(case)}-{dtype}-{implementation}")
            for case in cases
            for dtype in TOLERANCES
            for implementation in ("ffi", "xla")
            if (dtype, implementation) != ("float32", "xla") or name(case) in HARD
        ],
    )


def test_no_case_is_missing() -> None:
    assert [len(cases) for cases in (DISTINCT, REPEATED, RNNT, TDT)] == [43, 2, 19, 12]


def assert_as_computed(
    case: Fields, dtype: str, implementation: Implementation, function: Any, options: dict[str, Any]
) -> None:
    options["implementation"] = implementation
    if implementation == "ffi":
        results = losses_and_gradients(operands(case, dtype), function=function, **options)
    else:  # compiled in less time than autodiff; test_model.py holds the two together
        results = compiled("cost_and_grad", **options)(*operands(case, dtype))
    for result, expected in zip(results, (case["costs"], case["grads"]), strict=True):
        assert result.dtype == dtype
        assert_close(result, expected, TOLERANCES[dtype])


@runs(DISTINCT)
def test_multiblank(case: Fields, dtype: str, implementation: Implementation) -> None:
    settings = options(case, "sigma", "fastemit_lambda", "clamp")
    settings["big_blank_durations"] = durations(case)
    assert_as_computed(case, dtype, implementation, multiblank_rnnt_loss, settings)


@runs(RNNT)
def test_rnnt(case: Fields, dtype: str, implementation: Implementation) -> None:
    settings = options(case, "fastemit_lambda", "clamp")
    assert_as_computed(case, dtype, implementation, rnnt_loss, settings)


@pytest.mark.parametrize("case", REPEATED, ids=name)
def test_duration_given_to_two_classes_is_for_the_lattice_alone(
    case: Fields, implementation: Implementation
) -> None:
    operand = operands(case, "float64")
    with pytest.raises(ValueError, match="big_blank_durations"):
        multiblank_rnnt_loss(*operand, big_blank_durations=durations(case))

    blank = int(case["blank_id"])
    arcs = (Arc(0, True), Arc(1, False), *(Arc(d, False) for d in durations(case)))
    classes = [None, *(blank - i for i in range(len(arcs) - 1))]
    arc_log_probs = gather(log_softmax(operand.logits), operand.labels, classes)
    losses = lattice_loss(
        arc_log_probs - case["sigma"], *operand[2:], arcs=arcs, implementation=implementation
    )
    assert_close(costs(case, losses), case["costs"], 1e-10)


@functools.cache
def tdt_loss(durations: tuple[int, ...], implementation: Implementation) -> Any:
    def loss(arc_log_probs: Any, logit_lengths: Any, label_lengths: Any) -> Any:
        return lattice_loss(
            arc_log_probs,
            logit_lengths,
            label_lengths,
            arcs=tdt_arcs(durations),
            implementation=implementation,
        )

    return jitted(loss, implementation)


@runs(TDT)
def test_tdt_is_another_arc_table(case: Fields, dtype: str, implementation: Implementation) -> None:
    """Costs only: the logits of a token-and-duration model are not this package's business."""
    operand = operands(case, "float64")
    D = len(durations(case))
    tokens = log_softmax(operand.logits[..., :-D]) - case["sigma"]
    jumps = log_softmax(operand.logits[..., -D:])
    arcs = tdt_arcs(durations(case))
    classes = [None if arc.emits else int(case["blank_id"]) for arc in arcs]
    arc_log_probs = gather(tokens, operand.labels, classes)
    arc_log_probs += jumps[..., [durations(case).index(arc.duration) for arc in arcs]]
    losses = tdt_loss(durations(case), implementation)(arc_log_probs.astype(dtype), *operand[2:])
    assert losses.dtype == dtype
    assert_close(costs(case, losses), case["costs"], TOLERANCES[dtype])
