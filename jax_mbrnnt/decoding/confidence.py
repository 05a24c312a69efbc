"""How sure a model is of each label: from the row of scores that it was read off, or posteriors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_mbrnnt import _checks
from jax_mbrnnt.arcs import as_integer, validate_arcs

Entropy = Literal["gibbs", "tsallis", "renyi"]
Normalization = Literal["linear", "exponential"]


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def _rows(log_probs: ArrayLike) -> jax.Array:
    x = _checks.as_array(log_probs)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"log_probs: expected a floating dtype, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] < 2:
        raise ValueError(f"log_probs: expected shape [..., V] with V at least 2, got {x.shape}")
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def max_prob_confidence(log_probs: ArrayLike) -> jax.Array:
    """The probability of the most probable class, on a scale where a guess among all is 0.

    Args:
      log_probs: `[..., V]` floating-point, normalised: a log-softmax of logits, of one head. (-inf
        is a probability of 0.)

    Returns:
      `[...]`, `(V * max(p) - 1) / (V - 1)`, from 0 for V equal probabilities to 1; float32
      (float64 for float64).

    Raises:
      TypeError: `log_probs` are not floating-point.
      ValueError: there is no class to choose from, V below 2.

    Source: Laptev and Ginsburg, arXiv 2212.08703, in which it is the baseline.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import max_prob_confidence
      >>> max_prob_confidence(jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]]))).tolist()
      [0.0, 0.5]
    """
    x = _rows(log_probs)
    num_classes = x.shape[-1]
    return (num_classes * jnp.exp(jnp.max(x, axis=-1)) - 1) / (num_classes - 1)


def entropy_confidence(
    log_probs: ArrayLike,
    *,
    entropy: Entropy = "tsallis",
    alpha: float = 1 / 3,
    normalization: Normalization = "exponential",
) -> jax.Array:
    """How far a row's entropy H is from H*, that of equal probabilities.

    With `alpha` 1 the three entropies are Shannon's. With a smaller one improbable classes count
    for more, which makes less of an overconfident model's confidence.

    Args:
      log_probs: `[..., V]`, as in `max_prob_confidence`.
      entropy: which H, with p the V probabilities: "gibbs" is `-sum(p**alpha * log(p**alpha))`,
        "tsallis" is `(sum(p**alpha) - 1) / (1 - alpha)` and "renyi" is
        `log(sum(p**alpha)) / (1 - alpha)`.
      alpha: its order, above 0.
      normalization: "linear" for `1 - H / H*`, "exponential" for
        `(exp(-H) - exp(-H*)) / (1 - exp(-H*))`.

    Returns:
      `[...]` in [0, 1], 0 for V equal probabilities and 1 for one that is certain, in the dtype of
      `max_prob_confidence`. (Gibbs' entropy may be above H*, of a few classes or with an `alpha`
      above 1: that is 0.)

    Raises:
      TypeError, ValueError: as `max_prob_confidence`, and for an option that is none.

    Source: Laptev and Ginsburg, arXiv 2212.08703, section 3; the defaults are what they recommend,
    and NeMo's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import entropy_confidence
      >>> rows = jax.nn.log_softmax(jnp.array([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]))
      >>> [f"{x:.2f}" for x in entropy_confidence(rows, entropy="renyi").tolist()]
      ['0.00', '0.80']
    """
    x = _rows(log_probs)
    _check_choice("entropy", entropy, ("gibbs", "tsallis", "renyi"))
    _check_choice("normalization", normalization, ("linear", "exponential"))
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: expected a number above 0, got {alpha}")
    num_classes = x.shape[-1]
    if entropy == "gibbs" or alpha == 1:
        terms = jnp.exp(alpha * x) * jnp.where(x == -jnp.inf, 0, x)
        h = -alpha * jnp.sum(terms, axis=-1)
        most = alpha * num_classes ** (1 - alpha) * math.log(num_classes)
    else:
        total = jnp.sum(jnp.exp(alpha * x), axis=-1)
        of_equals = num_classes ** (1 - alpha)
        if entropy == "tsallis":
            h, most = (total - 1) / (1 - alpha), (of_equals - 1) / (1 - alpha)
        else:
            h, most = jnp.log(total) / (1 - alpha), math.log(num_classes)
    if normalization == "linear":
        confidence = 1 - h / most
    else:
        confidence = (jnp.exp(-h) - math.exp(-most)) / -math.expm1(-most)
    return jnp.clip(confidence, 0, 1)


def label_posteriors(
    posteriors: ArrayLike, frames: ArrayLike, *, arcs: Sequence[Any], within: int = 0
) -> jax.Array:
    """The probability that each label is emitted where an alignment or a decoder has it.

    Unlike a row's own confidence it has seen the whole utterance, and is blind to other labels: it
    says how sure the time is, given that the labels are right.

    Args:
      posteriors: `[batch_dims..., T, U+1, A]`, from `arc_posteriors` or `Transducer.posteriors`.
      frames: `[batch_dims..., U]` integers, as in `Alignment` or `GreedyDecoding`; -1 where there
        is no label.
      arcs: the A arcs.
      within: so many frames before and behind count, too.

    Returns:
      `[batch_dims..., U]` in [0, 1], but for roundings; 0 where there is no label.

    Raises:
      ValueError: for shapes that do not match, and a `within` below 0.

    Source: Graves, arXiv 1211.3711, eq. 20, summed over the label's arcs.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import arc_posteriors, label_posteriors, rnnt_arcs, viterbi_alignment
      >>> arc_log_probs = jnp.full((4, 2, 2), -0.7)  # any frame is as good as the others
      >>> frames = viterbi_alignment(arc_log_probs, arcs=rnnt_arcs()).frames
      >>> posteriors = arc_posteriors(arc_log_probs, arcs=rnnt_arcs())
      >>> of_label = label_posteriors(posteriors, frames, arcs=rnnt_arcs(), within=1)
      >>> bool(jnp.allclose(of_label, 2 / 4))  # it is the first frame of the four
      True
    """
    arcs = validate_arcs(arcs)
    x, frames = _checks.as_array(posteriors), _checks.as_array(frames)
    within = as_integer("within", within)
    if within < 0:
        raise ValueError(f"within: expected at least 0, got {within}")
    if x.ndim < 3 or x.shape[-1] != len(arcs):
        raise ValueError(
            "posteriors: expected shape [batch_dims..., T, U+1, A] with A the number of arcs, "
            f"{len(arcs)}, got {x.shape}"
        )
    expected = (*x.shape[:-3], x.shape[-2] - 1)
    if frames.shape != expected:
        raise ValueError(
            f"frames: expected shape {expected} to match posteriors {x.shape}, got {frames.shape}"
        )
    emits = [a for a, arc in enumerate(arcs) if arc.emits]
    emitted = sum((x[..., :-1, a] for a in emits), jnp.zeros_like(x[..., :-1, 0]))
    t = jnp.arange(x.shape[-3], dtype=frames.dtype)[:, None]
    t = jnp.expand_dims(t, range(frames.ndim - 1))
    away = jnp.abs(t - frames[..., None, :])
    counts = (away <= within) & (frames >= 0)[..., None, :]
    return jnp.sum(jnp.where(counts, emitted, 0), axis=-2)
