"""Is every line of the contract at the edges kept, by both implementations?

The contract: -inf logits are legal, and an impossible utterance has an infinite loss and a gradient
of zero. NaN, +inf and a label or length out of range poison their own utterance and no other.
Padding is never looked at.
"""

from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import checkify

from cases import (
    Array,
    Case,
    Implementation,
    assert_close,
    compiled,
    criterion,
    losses_and_gradients,
    random_case,
    valid_cells,
)
from enumeration import transducers
from jax_mbrnnt import (
    MultiblankRNNT,
    lattice_loss,
    rnnt_arcs,
    rnnt_loss,
)

B, T, U, V = 3, 4, 2, 6
OPTIONS: dict[str, Any] = {"big_blank_durations": (2,), "sigma": 0.05, "fastemit_lambda": 0.01}
TDT_OPTIONS: dict[str, Any] = {"durations": (0, 2, 1), "sigma": 0.05, "fastemit_lambda": 0.01}
SCORES = {"multiblank": V, "TDT": V + 3}  # V tokens
SICK = 1  # the utterance that something is wrong with
HEALTHY = np.arange(B) != SICK
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def options_of(case: Case) -> dict[str, Any]:
    """Those of the transducer whose scores these are."""
    return TDT_OPTIONS if case.logits.shape[-1] == SCORES["TDT"] else OPTIONS


@pytest.fixture(params=SCORES)
def case(request: pytest.FixtureRequest) -> Case:
    """Three utterances with padding in every dimension; labels are no blanks."""
    case = random_case(30, (B,), T, U, SCORES[request.param])
    return case._replace(
        labels=np.array([[0, 1], [2, 3], [3, 3]], np.int32),
        logit_lengths=np.array([4, 3, 3], np.int32),
        label_lengths=np.array([2, 1, 0], np.int32),
    )


def evaluate(
    case: Case, implementation: Implementation, cotangents: Any = None, **options: Any
) -> tuple[Array, Array]:
    """Losses and gradients."""
    options = {**options_of(case), **options, "implementation": implementation}
    losses, gradients = losses_and_gradients(case, cotangents, **options)
    if implementation == "ffi":  # which has a kernel of its own for losses without gradients
        tolerance = 1e-13 if losses.dtype == "float64" else 1e-6
        assert_close(compiled("score_forward", **options)(*case), losses, tolerance)
    return losses, gradients


def posteriors_of(case: Case, implementation: Implementation) -> Array:
    posteriors = compiled("posteriors", **options_of(case), implementation=implementation)
    return np.asarray(posteriors(*case))


def assert_as_enumerated(case: Case, implementation: Implementation) -> tuple[Array, Array]:
    losses, gradients = evaluate(case, implementation)
    expected_losses, expected_gradients = transducers(*case, **options_of(case))
    assert_close(losses, expected_losses, 1e-12)
    assert_close(gradients, expected_gradients, 1e-12)
    return losses, gradients


def assert_poisoned(sick: Case, case: Case, implementation: Implementation, region: Array) -> None:
    """Only SICK is poisoned: NaN where `region` [T, U+1] says, 0 elsewhere."""
    losses, gradients = evaluate(sick, implementation)
    well_losses, well_gradients = evaluate(case, implementation)
    posteriors = posteriors_of(sick, implementation)
    well_posteriors = posteriors_of(case, implementation)
    assert np.isnan(losses[SICK])
    np.testing.assert_array_equal(
        gradients[SICK],
        np.broadcast_to(np.where(region, np.nan, 0)[..., None], gradients[SICK].shape),
    )
    np.testing.assert_array_equal(np.isnan(posteriors[SICK]).any(-1), region)
    assert np.all(posteriors[SICK][~region] == 0)
    np.testing.assert_array_equal(losses[HEALTHY], well_losses[HEALTHY])
    np.testing.assert_array_equal(gradients[HEALTHY], well_gradients[HEALTHY])
    np.testing.assert_array_equal(posteriors[HEALTHY], well_posteriors[HEALTHY])


def assert_impossible(case: Case, implementation: Implementation, utterances: Any = SICK) -> None:
    cotangents = np.array([2.0, -3.0, 0.5])
    losses, gradients = evaluate(case, implementation, cotangents, clamp=0.5)
    posteriors = posteriors_of(case, implementation)
    assert np.all(losses[utterances] == np.inf)
    assert np.all(gradients[utterances] == 0)
    assert np.all(posteriors[utterances] == 0)
    assert np.all(np.isfinite(losses[~np.isin(np.arange(B), utterances)]))
    assert np.all(np.isfinite(gradients))


# -inf logits.


def test_masked_class_that_no_arc_carries(case: Case, implementation: Implementation) -> None:
    case.logits[..., 0] = -np.inf
    case.labels[0] = 1
    losses, gradients = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))
    assert np.all(gradients[..., 0] == 0)


def test_masked_label_at_some_nodes(case: Case, implementation: Implementation) -> None:
    case.logits[0, :2, 0, 0] = -np.inf
    losses, _ = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))


def test_masked_blank_at_some_nodes(case: Case, implementation: Implementation) -> None:
    case.logits[:, 1, :, V - 1] = -np.inf
    losses, _ = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))


def test_row_of_minus_infinities_has_no_exits(case: Case, implementation: Implementation) -> None:
    case.logits[:, 1, 0] = -np.inf
    losses, gradients = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))
    assert np.all(gradients[:, 1, 0] == 0)


def test_arc_log_probs_of_minus_infinity(implementation: Implementation) -> None:
    arc_log_probs = np.full((T, U + 1, 2), -np.inf)
    for step in [(0, 0, 0), (0, 1, 1), (1, 1, 1), (2, 1, 0), (2, 2, 1), (3, 2, 1)]:
        arc_log_probs[step] = -0.5
    loss, gradient = jax.value_and_grad(lattice_loss)(
        arc_log_probs, arcs=rnnt_arcs(), implementation=implementation
    )
    assert_close(loss, 3.0, 1e-14)
    assert_close(gradient, -np.isfinite(arc_log_probs).astype(float), 1e-14)


# Impossible utterances.


def test_label_masked_everywhere_is_impossible(case: Case, implementation: Implementation) -> None:
    case.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    assert_impossible(case, implementation)


def test_blanks_masked_at_the_end_are_impossible(
    case: Case, implementation: Implementation
) -> None:
    T, U = case.logit_lengths[SICK], case.label_lengths[SICK]
    case.logits[SICK, :T, U, V - 2 :] = -np.inf
    assert_impossible(case, implementation)


def test_nothing_but_minus_infinities_is_impossible(
    case: Case, implementation: Implementation
) -> None:
    case.logits[SICK] = -np.inf
    assert_impossible(case, implementation)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_impossible_in_every_dtype(case: Case, dtype: str, implementation: Implementation) -> None:
    case.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    narrow = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = losses_and_gradients(
        narrow, **options_of(case), implementation=implementation
    )
    np.testing.assert_array_equal(np.isposinf(losses), ~HEALTHY)
    assert np.all(gradients[SICK] == 0)
    assert np.all(np.isfinite(gradients.astype(np.float32)))


def test_lattice_without_an_exit_is_impossible(implementation: Implementation) -> None:
    loss, gradient = jax.value_and_grad(lattice_loss)(
        np.full((T, U + 1, 2), -np.inf), arcs=rnnt_arcs(), implementation=implementation
    )
    assert loss == np.inf
    assert np.all(gradient == 0)


def test_mean_over_an_impossible_utterance(case: Case, implementation: Implementation) -> None:
    """The others' gradients are as if it were not there."""
    well = evaluate(case, implementation, np.full(B, 1 / B))[1]
    case.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    sick = evaluate(case, implementation, np.full(B, 1 / B))[1]
    np.testing.assert_array_equal(sick[HEALTHY], well[HEALTHY])


# NaN and +inf.

POISON = pytest.mark.parametrize("value", [np.nan, np.inf])


@POISON
@pytest.mark.parametrize(
    ("t", "u", "v"), [(0, 0, 0), (2, 1, V - 1), (2, 0, 4), (1, 1, 3), (1, 0, -2)]
)
def test_poison_in_the_valid_region(
    case: Case, value: float, t: int, u: int, v: int, implementation: Implementation
) -> None:
    sick = case._replace(logits=case.logits.copy())
    sick.logits[SICK, t, u, v] = value
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@POISON
def test_poison_at_a_node_that_no_path_reaches(
    case: Case, value: float, implementation: Implementation
) -> None:
    sick = case._replace(logits=case.logits.copy())
    sick.logits[SICK, 0, 0, [4, 5]] = -np.inf  # no blank leaves (0, 0), so none comes to (1, 0)
    sick.logits[SICK, 1, 0, 0] = value
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@POISON
def test_poison_in_an_impossible_utterance(
    case: Case, value: float, implementation: Implementation
) -> None:
    sick = case._replace(logits=case.logits.copy())
    sick.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    sick.logits[SICK, 1, 1, 0] = value
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@POISON
def test_poison_without_jit(case: Case, value: float, implementation: Implementation) -> None:
    case.logits[SICK, 1, 1, 3] = value
    losses = criterion(**options_of(case), implementation=implementation)(*case)
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@POISON
def test_poison_in_every_dtype(
    case: Case, value: float, dtype: str, implementation: Implementation
) -> None:
    case.logits[SICK, 2, 1, 0] = value
    narrow = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = losses_and_gradients(
        narrow, **options_of(case), implementation=implementation
    )
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)
    sick_cells = valid_cells(case) & ~HEALTHY[:, None, None]
    np.testing.assert_array_equal(
        np.isnan(gradients.astype(np.float32)),
        np.broadcast_to(sick_cells[..., None], gradients.shape),
    )


def test_poison_survives_clamp_and_cotangents(case: Case, implementation: Implementation) -> None:
    case.logits[SICK, 1, 0, 2] = np.nan
    _, gradients = evaluate(case, implementation, np.array([1.0, -2.0, 3.0]), clamp=0.5)
    assert np.all(np.isnan(gradients[SICK][valid_cells(case)[SICK]]))


@POISON
def test_poisoned_arc_log_probs(value: float, implementation: Implementation) -> None:
    arc_log_probs = np.random.default_rng(31).normal(size=(B, T, U + 1, 2))
    arc_log_probs[SICK, 1, 1, 1] = value
    losses, pullback = jax.vjp(
        lambda x: lattice_loss(x, arcs=rnnt_arcs(), implementation=implementation), arc_log_probs
    )
    gradients = pullback(np.ones(B))[0]
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)
    np.testing.assert_array_equal(np.isnan(gradients).any((1, 2, 3)), ~HEALTHY)


# Padding.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_is_never_looked_at(
    case: Case, value: float, implementation: Implementation
) -> None:
    padded = ~valid_cells(case)
    littered = case._replace(logits=case.logits.copy(), labels=case.labels.copy())
    littered.logits[padded] = value
    littered.labels[np.arange(U) >= case.label_lengths[:, None]] = -100
    losses, gradients = evaluate(case, implementation)
    littered_losses, littered_gradients = evaluate(littered, implementation)
    np.testing.assert_array_equal(littered_losses, losses)
    np.testing.assert_array_equal(littered_gradients, gradients)
    np.testing.assert_array_equal(
        posteriors_of(littered, implementation), posteriors_of(case, implementation)
    )


def test_padded_cells_have_gradients_of_exactly_zero(
    case: Case, implementation: Implementation
) -> None:
    _, gradients = evaluate(case, implementation)
    posteriors = posteriors_of(case, implementation)
    padded = ~valid_cells(case)
    assert np.all(gradients[padded] == 0)
    assert np.all(posteriors[padded] == 0)
    assert np.all(gradients[~padded].any(-1))


def test_no_length_has_to_reach_the_padded_size(case: Case, implementation: Implementation) -> None:
    shorter = case._replace(
        logit_lengths=np.array([2, 1, 3], np.int32), label_lengths=np.array([1, 0, 1], np.int32)
    )
    assert_as_enumerated(shorter, implementation)


def test_arcs_that_are_not_there_have_no_posterior(
    case: Case, implementation: Implementation
) -> None:
    arcs = criterion(**options_of(case)).arcs
    posteriors = posteriors_of(case, implementation)
    for b, (T, U) in enumerate(zip(case.logit_lengths, case.label_lengths, strict=True)):
        for a, arc in enumerate(arcs):
            of_arc = posteriors[b, ..., a]
            if arc.emits:
                assert np.all(of_arc[:, U:] == 0)
                assert np.all(of_arc[T - arc.duration :] == 0)
            else:
                assert np.all(of_arc[T - arc.duration :, :U] == 0)
                assert np.all(of_arc[T - arc.duration + 1 :] == 0)
                assert of_arc[T - arc.duration, U] > 0


# Empty utterances.


def test_utterance_of_nothing_costs_nothing(case: Case, implementation: Implementation) -> None:
    case.logit_lengths[SICK] = case.label_lengths[SICK] = 0
    losses, gradients = evaluate(case, implementation)
    assert losses[SICK] == 0
    assert np.all(gradients[SICK] == 0)
    assert np.all(posteriors_of(case, implementation)[SICK] == 0)
    assert np.all(losses[HEALTHY] > 0)


def test_utterance_of_nothing_but_padding_is_never_looked_at(
    case: Case, implementation: Implementation
) -> None:
    case.logit_lengths[SICK] = case.label_lengths[SICK] = 0
    case.logits[SICK] = np.nan
    case.labels[SICK] = 99
    losses, gradients = evaluate(case, implementation)
    assert losses[SICK] == 0
    assert np.all(gradients[SICK] == 0)


def test_labels_without_frames_are_impossible(case: Case, implementation: Implementation) -> None:
    case.logit_lengths[SICK] = 0
    assert_impossible(case, implementation)


def test_labels_out_of_range_without_frames_are_impossible(
    case: Case, implementation: Implementation
) -> None:
    """No arc reads them, since there is no node: as impossible as any labels."""
    case.logit_lengths[SICK] = 0
    case.labels[SICK, 0] = V + 1
    assert_impossible(case, implementation)


@pytest.mark.parametrize(("U", "expected"), [(0, 0.0), (2, np.inf)])
def test_no_frames_at_all(U: int, expected: float, implementation: Implementation) -> None:
    case = random_case(32, (2,), 0, U, V, ragged=False)
    losses, gradients = evaluate(case, implementation)
    np.testing.assert_array_equal(losses, [expected] * 2)
    assert gradients.shape == (2, 0, U + 1, V)
    assert posteriors_of(case, implementation).shape == (2, 0, U + 1, 3)


# Labels and lengths out of range. Traced: poison. Concrete: see test_errors.py.


@pytest.mark.parametrize("label", [-1, V, 1000, INT32_MIN, INT32_MAX])
def test_label_out_of_range(case: Case, label: int, implementation: Implementation) -> None:
    sick = case._replace(labels=case.labels.copy())
    sick.labels[SICK, 0] = label
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@pytest.mark.parametrize("length", [-1, T + 1, INT32_MIN, INT32_MAX])
def test_logit_length_out_of_range(case: Case, length: int, implementation: Implementation) -> None:
    sick = case._replace(logit_lengths=case.logit_lengths.copy())
    sick.logit_lengths[SICK] = length
    assert_poisoned(sick, case, implementation, np.ones((T, U + 1), bool))


@pytest.mark.parametrize("length", [-1, U + 1, INT32_MIN, INT32_MAX])
def test_label_length_out_of_range(case: Case, length: int, implementation: Implementation) -> None:
    sick = case._replace(label_lengths=case.label_lengths.copy())
    sick.label_lengths[SICK] = length
    assert_poisoned(sick, case, implementation, np.ones((T, U + 1), bool))


def test_64_bit_labels_and_lengths_do_not_wrap(case: Case, implementation: Implementation) -> None:
    wide = Case(case.logits, *(operand.astype(np.int64) for operand in case[1:]))
    np.testing.assert_array_equal(
        evaluate(wide, implementation)[1], evaluate(case, implementation)[1]
    )
    for operand, region in zip(
        ["labels", "logit_lengths", "label_lengths"],
        [valid_cells(case)[SICK], np.ones((T, U + 1), bool), np.ones((T, U + 1), bool)],
        strict=True,
    ):
        wrapped = getattr(wide, operand).copy()
        wrapped[SICK] += 2**32
        assert_poisoned(wide._replace(**{operand: wrapped}), case, implementation, region)


def test_unsigned_labels_out_of_range(case: Case, implementation: Implementation) -> None:
    sick = case._replace(labels=case.labels.astype(np.uint32))
    sick.labels[SICK, 0] = 2**32 - 1
    losses = compiled("score_forward", **OPTIONS, implementation=implementation)(*sick)
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)


# Classes.


@pytest.mark.parametrize("which", [0, -1])
def test_label_that_is_a_blank(case: Case, which: int, implementation: Implementation) -> None:
    """The standard blank or a big one: as good as a label out of range, in padding as well."""
    label = criterion(**options_of(case)).emission(case.logits.shape[-1]).blanks[which]
    sick = case._replace(labels=case.labels.copy())
    sick.labels[SICK, 0] = label
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])
    behind = case._replace(labels=case.labels.copy())
    behind.labels[np.arange(U) >= case.label_lengths[:, None]] = label
    for a, b in zip(evaluate(behind, implementation), evaluate(case, implementation), strict=True):
        np.testing.assert_array_equal(a, b)


def test_vocabulary_with_the_blank_first(implementation: Implementation) -> None:
    """With the default `blank_id` its last label is a blank: no finite loss for days."""
    logits, labels = np.zeros((1, 4, 3, 6)), np.array([[1, 5]])
    with pytest.raises(ValueError, match=r"labels\[0, 1\]: expected none of .* \(5,\), got 5"):
        rnnt_loss(logits, labels, implementation=implementation)
    assert np.isnan(compiled("score_forward", implementation=implementation)(logits, labels))
    assert np.all(np.isfinite(rnnt_loss(logits, labels, blank_id=0, implementation=implementation)))
    loss = jax.jit(checkify.checkify(MultiblankRNNT().checked))
    error, _ = loss(logits, labels)
    assert "labels[0, 1]: expected none of the blanks' classes (5,), got 5" in error.get()


# Sizes and magnitudes.


def test_more_than_1024_labels(implementation: Implementation) -> None:
    """One frame: every label in a row, and the blank."""
    case = random_case(33, (), 1, 1100, 4, ragged=False)
    losses, gradients = losses_and_gradients(case, implementation=implementation)
    log_probs = jax.nn.log_softmax(case.logits)[0]
    classes = np.append(case.labels, 3)
    path = log_probs[np.arange(1101), classes]
    assert_close(losses, -path.sum(), 1e-13)
    expected = np.exp(log_probs)
    expected[np.arange(1101), classes] -= 1
    assert_close(gradients[0], expected, 1e-12)


def test_many_labels_and_frames(implementation: Implementation) -> None:
    """Rows of more nodes than a block has threads, in float32 against float64."""
    case = random_case(34, (2,), 6, 1500, 3)
    expected = losses_and_gradients(case, implementation="xla")
    narrow = case._replace(logits=case.logits.astype(np.float32))
    losses, gradients = losses_and_gradients(narrow, implementation=implementation)
    assert_close(losses, expected[0], 1e-5)
    assert_close(gradients, expected[1], 1e-4)


@pytest.mark.parametrize("mask", [-1e9, -1e30, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_finite_mask_is_as_good_as_infinity(
    case: Case, mask: float, dtype: str, tolerance: float, implementation: Implementation
) -> None:
    case.logits[..., 0] = -np.inf
    case.logits[:, 1, :, V - 1] = -np.inf
    case.labels[0] = 1
    expected_losses, expected_gradients = transducers(*case, **options_of(case))
    finite = case._replace(logits=np.maximum(case.logits, mask).astype(dtype))
    losses, gradients = evaluate(finite, implementation)
    assert_close(losses, expected_losses, tolerance)
    assert_close(gradients, expected_gradients, tolerance)


@pytest.mark.parametrize("mask", [-50.0, -1e4, -1e9, -1e30, float(np.finfo(np.float32).min)])
def test_big_blank_leads_around_a_finite_mask(mask: float, implementation: Implementation) -> None:
    """The frame between is all but out of reach; what passes it by keeps its digits."""
    logits = np.zeros((2, 1, 3), np.float32)
    logits[0, 0, 2] = mask
    losses, _ = evaluate(
        Case(logits, np.zeros(0, np.int32), np.int32(2), np.int32(0)), implementation
    )
    assert_close(losses, 1.01 * (np.log(2) + 0.05), 1e-6)


@pytest.mark.parametrize("mask", [-1e9, -1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_mask_that_every_path_has_to_cross(
    case: Case, mask: float, dtype: str, implementation: Implementation
) -> None:
    """The loss is of the mask's size, and nothing overflows."""
    case.logits[SICK, ..., case.labels[SICK, 0]] = mask
    narrow = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = evaluate(narrow, implementation)
    posteriors = posteriors_of(narrow, implementation)
    np.testing.assert_allclose(losses[SICK], -1.01 * mask, rtol=1e-6)
    assert np.all((posteriors >= 0) & (posteriors <= 1 + 1e-6))
    assert np.all(np.isfinite(gradients))


def test_finite_mask_that_every_path_crosses_once(
    case: Case, implementation: Implementation
) -> None:
    """Its size is then a constant of the loss: -50 has the same gradient but for exp(-50)."""
    case.logits[SICK, ..., case.labels[SICK, 0]] = -50.0
    expected = transducers(*case, **options_of(case))[1]
    case.logits[SICK, ..., case.labels[SICK, 0]] = -1e9
    assert_close(evaluate(case, implementation)[1], expected, 1e-6)  # 1e9 has an ulp of 1e-7


@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e30])
def test_finite_mask_in_a_long_utterance(mask: float, implementation: Implementation) -> None:
    """In float32 nothing is left of the other log-probabilities beside it; still no overflow."""
    case = random_case(35, (), 80, 20, 10, dtype=np.float32, ragged=False, scale=3.0)
    case.labels[:] = np.arange(20) % 7
    case.logits[:, 4, case.labels[4]] = mask
    losses, gradients = evaluate(case, implementation)
    posteriors = posteriors_of(case, implementation)
    np.testing.assert_allclose(losses, -1.01 * mask, rtol=0.05 if mask == -1e4 else 1e-6)
    assert np.all((posteriors >= 0) & (posteriors <= 1 + 1e-3))
    assert np.all(np.isfinite(gradients))


def test_huge_logits(case: Case, implementation: Implementation) -> None:
    huge = case._replace(logits=1e4 * case.logits)
    assert_as_enumerated(huge, implementation)


def test_lambda_of_minus_one(case: Case, implementation: Implementation) -> None:
    """Labels weigh nothing: every loss is 0, but those that are none stay."""
    case.logits[0] = -np.inf
    case.logits[SICK, 0, 0, 0] = np.nan
    losses, gradients = evaluate(case, implementation, fastemit_lambda=-1.0)
    np.testing.assert_array_equal(losses, [np.inf, np.nan, 0.0])
    assert np.all(gradients[0] == 0)
    assert np.all(np.isfinite(gradients[2]))
