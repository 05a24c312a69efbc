"""Do confidences keep to their definitions, and to the posteriors that they are summed from?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Array, assert_close, compiled, criterion, random_case
from jax_mbrnnt import entropy_confidence, label_posteriors, max_prob_confidence, rnnt_arcs

ENTROPIES = ("gibbs", "tsallis", "renyi")
NORMALIZATIONS = ("linear", "exponential")
ALPHAS = (1 / 3, 0.5, 1, 2)


def rows(V: int, dtype: str = "float64") -> Array:
    logits = np.random.default_rng(V).normal(scale=3, size=(5, 7, V))
    return np.asarray(jax.nn.log_softmax(logits).astype(dtype))


def entropy_of(p: Array, entropy: str, alpha: float) -> Any:
    """Of probabilities, all above 0, by the formulas of arXiv 2212.08703."""
    powers = p**alpha
    if entropy == "gibbs":
        return -(powers * np.log(powers)).sum(-1)
    if alpha == 1:
        return -(p * np.log(p)).sum(-1)
    if entropy == "tsallis":
        return (1 - powers.sum(-1)) / (alpha - 1)
    return np.log2(powers.sum(-1)) / (1 - alpha) * np.log(2)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("entropy", ENTROPIES)
def test_entropies(entropy: Any, normalization: Any, alpha: float) -> None:
    options = {"entropy": entropy, "normalization": normalization, "alpha": alpha}
    for V in (2, 30):
        log_probs = rows(V)
        h, most = (
            entropy_of(p, entropy, alpha) for p in (np.exp(log_probs), np.full((1, V), 1 / V))
        )
        expected = 1 - h / most
        if normalization == "exponential":
            expected = (np.exp(-h) - np.exp(-most)) / (1 - np.exp(-most))
        expected = np.maximum(expected, 0)
        assert_close(entropy_confidence(log_probs, **options), expected, 1e-13)
    short = entropy_confidence(rows(30, "float32"), **options)
    assert short.dtype == "float32"
    assert_close(short, expected, 3e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("entropy", [*ENTROPIES, "max_prob"])
def test_from_a_guess_to_certainty(entropy: Any, normalization: Any, alpha: float) -> None:
    log_probs = np.array([[-np.log(4)] * 4, [0.0, *[-np.inf] * 3], [np.nan, 0, -np.inf, -np.inf]])
    if entropy == "max_prob":
        confidences = max_prob_confidence(log_probs)
    else:
        options = {"entropy": entropy, "normalization": normalization, "alpha": alpha}
        confidences = entropy_confidence(log_probs, **options)
    np.testing.assert_allclose(confidences, [0, 1, np.nan], rtol=0, atol=1e-15)


def test_max_prob() -> None:
    log_probs = rows(30)
    expected = (np.exp(log_probs).max(-1) - 1 / 30) / (1 - 1 / 30)
    assert_close(max_prob_confidence(log_probs), expected, 1e-14)
    assert max_prob_confidence(jnp.asarray(log_probs, jnp.bfloat16)).dtype == "float32"


def test_errors_of_rows() -> None:
    for measure in (max_prob_confidence, entropy_confidence):
        with pytest.raises(TypeError, match="log_probs: expected a floating dtype, got int"):
            measure(np.zeros((3, 4), np.int32))
        with pytest.raises(ValueError, match=r"log_probs: expected shape .* V at least 2"):
            measure(np.zeros((3, 1)))
    for option, value in [("entropy", "shannon"), ("normalization", "lin"), ("alpha", 0)]:
        with pytest.raises(ValueError, match=f"{option}: expected"):
            entropy_confidence(np.zeros((3, 4)), **{option: value})


@pytest.mark.parametrize(
    "options", [{"big_blank_durations": (2,)}, {"durations": (0, 1, 2)}], ids=str
)
def test_label_posteriors(options: dict[str, Any]) -> None:
    case = random_case(0, (2, 3), T=9, blanks=range(5, 8))
    arcs = criterion(**options).arcs
    posteriors = np.asarray(compiled("posteriors", **options)(*case))
    frames = np.asarray(compiled("alignment", **options)(*case).frames)
    assert np.any(frames == -1)
    for within in (0, 2):
        found = label_posteriors(posteriors, frames, arcs=arcs, within=within)
        for *b, u in np.ndindex(frames.shape):
            t = frames[*b, u]
            near = slice(max(0, t - within), t + within + 1) if t >= 0 else slice(0)
            arcs_of_labels = [a for a, arc in enumerate(arcs) if arc.emits]
            expected = posteriors[*b, near, u][:, arcs_of_labels].sum()
            np.testing.assert_allclose(found[*b, u], expected, rtol=0, atol=1e-14)
    everywhere = label_posteriors(posteriors, frames, arcs=arcs, within=9)
    assert_close(everywhere, frames >= 0, 1e-12)


def test_errors_of_posteriors() -> None:
    posteriors, frames = np.zeros((2, 4, 3, 2)), np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match=r"posteriors: expected shape .* got \(2, 4, 3, 2\)"):
        label_posteriors(posteriors, frames, arcs=rnnt_arcs()[:1])
    with pytest.raises(ValueError, match=r"frames: expected shape \(2, 2\)"):
        label_posteriors(posteriors, frames[0], arcs=rnnt_arcs())
    with pytest.raises(ValueError, match="within: expected at least 0"):
        label_posteriors(posteriors, frames, arcs=rnnt_arcs(), within=-1)
