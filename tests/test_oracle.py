"""Do we agree with implementations that are not ours? See oracle/README.md."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from cases import Array, Case, Implementation, assert_close, compiled, losses_and_gradients
from enumeration import log_softmax
from jax_mbrnnt import (
    Arc,
    lattice_loss,
    multiblank_rnnt_loss,
)

Fields = dict[str, Array]


def load(file: str) -> list[Fields]:
    cases: dict[str, Fields] = {}
    with np.load(pathlib.Path(__file__).parent / "oracle" / file) as arrays:
        for key in arrays.files:
            number, field = key.split("/")
            cases.setdefault(number, {"file": np.asarray(file)})[field] = arrays[key]
    return [cases[number] for number in sorted(cases)]


def name(case: Fields) -> str:
    return f"{str(case['file']).removesuffix('.npz')}-{case['name']}"


def durations(case: Fields) -> tuple[int, ...]:
    return tuple(case["durations"].astype(int).tolist())


def options(case: Fields) -> dict[str, Any]:
    """RNN-T's cases have neither durations nor sigma."""
    found: dict[str, Any] = {"blank_id": int(case["blank_id"])}
    for name in ("sigma", "fastemit_lambda", "clamp"):
        if name in case:
            found[name] = float(case[name])
    if "durations" in case:
        found["durations" if case["file"] == "tdt.npz" else "big_blank_durations"] = durations(case)
    return found


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
            if (dtype, implementation) != ("float32", "xla") or str(case["name"]) in HARD
        ],
    )


def test_no_case_is_missing() -> None:
    assert [len(cases) for cases in (DISTINCT, REPEATED, RNNT, TDT)] == [43, 2, 19, 12]


@runs(DISTINCT + RNNT + TDT)
def test_oracle(case: Fields, dtype: str, implementation: Implementation) -> None:
    settings = {**options(case), "implementation": implementation}
    if implementation == "ffi":
        results = losses_and_gradients(operands(case, dtype), **settings)
    else:  # compiled in less time than autodiff; test_model.py holds the two together
        results = compiled("cost_and_grad", **settings)(*operands(case, dtype))
    for result, expected in zip(results, (case["costs"], case["grads"]), strict=True):
        assert result.dtype == dtype
        assert_close(result, expected, TOLERANCES[dtype])


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
