"""N-grams read from ARPA files, against the rule of backing off, applied by hand and in Python."""

import gzip
import itertools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import LanguageModel, NGram, read_arpa

SMALL = r"""
anything may stand before

\data\
ngram 1=6
ngram 2=5
ngram 3=2

\1-grams:
-99	<s>	-0.50
-1.5	</s>
-1.0	<unk>	-0.25
-0.5	a	-0.125
-0.75	b	-0.0625
-1.25	c

\2-grams:
-0.25	<s> a	-0.375
-0.3	a b	-0.4
-0.6	b a
-0.7	b </s>
-0.9	<unk> a	-0.45

\3-grams:
-0.1	<s> a b
-0.2	a b a

\end\
what follows is not read
"""
LABELS = ["a", "b", None, "c", "other"]
A, B, BLANK, C, OTHER = range(5)

# Worked out by hand: the longest n-gram, and the backoffs of the contexts left behind.
BY_HAND = [
    ([], A, -0.25),  # <s> a
    ([], B, -0.5 - 0.75),  # <s> backs off to b
    ([], C, -0.5 - 1.25),
    ([], OTHER, -0.5 - 1.0),  # <unk>
    ([], None, -0.5 - 1.5),  # </s>
    ([A], B, -0.1),  # <s> a b
    ([A], A, -0.375 - 0.125 - 0.5),  # <s> a, a, then a alone
    ([A, B], A, -0.2),  # a b a
    ([A, B], None, -0.4 - 0.7),  # a b, then b </s>
    ([A, B], C, -0.4 - 0.0625 - 1.25),
    ([B], A, -0.6),
    ([B, A], B, -0.3),  # no b a b, and no backoff of b a
    ([C], A, -0.5),  # c has neither n-grams nor a backoff
    ([C, B], None, -0.7),
    ([OTHER], A, -0.9),
    ([OTHER, A], B, -0.45 - 0.3),
    ([A, OTHER], C, -0.25 - 1.25),
]


advance = jax.jit(NGram.advance)
score_of = jax.jit(NGram.score)
end = jax.jit(NGram.end)


def score(model: NGram, labels: list[int], v: int | None) -> float:
    """To base 10; None for the end."""
    state = model.initial_state(1)
    for label in labels:
        state = advance(model, jnp.array([label]), state)
    log_probs = end(model, state) if v is None else score_of(model, jnp.array([[v]]), state)
    return float(log_probs.ravel()[0]) / math.log(10)


@pytest.mark.parametrize(("labels", "v", "expected"), BY_HAND)
def test_backing_off(labels: list[int], v: int | None, expected: float) -> None:
    model = read_arpa(SMALL.splitlines(), LABELS)
    assert score(model, labels, v) == pytest.approx(expected, abs=1e-5)


def test_blanks_are_not_scored() -> None:
    model = read_arpa(SMALL.splitlines(), LABELS)
    assert score(model, [A], BLANK) == -math.inf


def test_without_an_end() -> None:
    model = read_arpa(SMALL.splitlines(), LABELS, end_word=None)
    assert score(model, [A, B], None) == 0.0


def test_without_a_start() -> None:
    """An utterance begins as if nothing was known of what came before."""
    model = read_arpa(SMALL.splitlines(), LABELS, start_word="<start>")
    assert score(model, [], B) == pytest.approx(-0.75, abs=1e-5)


@pytest.mark.parametrize("name", ["small.arpa", "small.arpa.gz"])
def test_files(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    (gzip.open if name.endswith(".gz") else open)(path, "wb").write(SMALL.encode())
    expected = read_arpa(SMALL.splitlines(), LABELS)
    for file in (path, str(path)):
        jax.tree.map(np.testing.assert_array_equal, read_arpa(file, LABELS), expected)


# ---- a larger one, against the rule in Python -------------------------------------------------


def random_grams(seed: int, words: list[str], order: int) -> list[dict[tuple[str, ...], Any]]:
    """Every n-gram's context is there, and so is what follows its first word or may not be."""
    rng = np.random.default_rng(seed)
    grams: list[dict[tuple[str, ...], Any]] = []
    for n in range(1, order + 1):
        contexts: list[tuple[str, ...]] = [()] if n == 1 else list(grams[-1])
        grams.append(
            {
                (*context, word): tuple(-rng.random(2))
                for context in contexts
                for word in words
                if n == 1 or rng.random() < 0.4
            }
        )
    return grams


def lines_of(grams: list[dict[tuple[str, ...], Any]]) -> list[str]:
    lines = ["\\data\\", *(f"ngram {n}={len(g)}" for n, g in enumerate(grams, 1))]
    for n, of_order in enumerate(grams, 1):
        lines.append(f"\\{n}-grams:")
        for gram, (log_prob, backoff) in of_order.items():
            last = "" if n == len(grams) else f"\t{backoff:.9f}"
            lines.append(f"{log_prob:.9f}\t{' '.join(gram)}{last}")
    return [*lines, "\\end\\"]


def plain_score(grams: list[dict[tuple[str, ...], Any]], words: tuple[str, ...]) -> float:
    """The log-probability to base 10 of the last word after the others."""
    words = words[-len(grams) :]
    if words in grams[len(words) - 1]:
        return float(grams[len(words) - 1][words][0])
    context = words[:-1]
    backoff = grams[len(context) - 1].get(context, (0, 0.0))[1]
    return float(backoff) + plain_score(grams, words[1:])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_random_files(order: int) -> None:
    words = ["<s>", "</s>", "a", "b", "c"]
    grams = random_grams(order, words, order)
    model = read_arpa(lines_of(grams), words[2:])
    # Sequences of three labels, scored as a batch, with the model as an argument.
    every = list(itertools.product(range(3), repeat=3))

    @jax.jit
    def run(model: NGram, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, scores = model.initial_state(len(labels)), []
        for i in range(3):
            scores.append(model.score(labels[:, i : i + 1], state)[:, 0])
            state = model.advance(labels[:, i], state)
        return jnp.stack(scores, axis=1), model.end(state)

    scores, ends = run(model, jnp.array(every))
    for labels, of_labels, end in zip(every, scores, ends, strict=True):
        said = ("<s>", *(words[2 + v] for v in labels), "</s>")
        expected = [plain_score(grams, said[: i + 1]) for i in range(1, len(said))]
        found = np.append(of_labels, end) / np.log(10)
        np.testing.assert_allclose(found, expected, atol=2e-6)


# ---- what is wrong --------------------------------------------------------------------------


def changed(old: str, new: str) -> list[str]:
    assert old in SMALL
    return SMALL.replace(old, new).splitlines()


WRONG: dict[str, tuple[list[str], list[Any], str]] = {
    "no file": (["a", "b"], ["a"], "expected an ARPA file, from"),
    "no end": (SMALL.split("\\end")[0].splitlines(), ["a"], "expected an ARPA file, from"),
    "no grams": (["\\data\\", "\\end\\"], ["a"], "expected an ARPA file, from"),
    "empty": (["\\data\\", "\\1-grams:", "\\end\\"], ["a"], "expected an ARPA file with 1-grams"),
    "words": (changed("a b\t-0.4", "a"), ["a"], r"2 words .* in line 19, got '-0\.3\\ta'"),
    "word": (
        changed("a b\t-0.4", "a d\t-0.4"),
        ["a"],
        "expected an n-gram 'd', for there is 'a d'",
    ),
    "number": (changed("-0.3\ta b", "x\ta b"), ["a"], "in line 19, got 'x"),
    "context": (
        changed("-0.3\ta b\t-0.4", ""),
        ["a"],
        "expected an n-gram 'a b', for there is 'a b a'",
    ),
    "label": (changed("<unk>", "<other>"), ["a", "d"], r"labels\[1\]: expected a word .* got 'd'"),
    "twice": (SMALL.splitlines(), ["a", None, "b", None, "a"], "distinct words, got 'a' twice"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(what: str) -> None:
    lines, labels, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        read_arpa(lines, labels)


def test_no_end_in_the_file() -> None:
    lines = changed("</s>", "d")
    with pytest.raises(ValueError, match="end_word: expected a word of the file"):
        read_arpa(lines, ["a"], unknown_word="<nothing>")
    assert read_arpa(lines, ["a"], end_word=None, unknown_word="<nothing>").end_word == -1


def test_the_end_is_free_unless_a_model_says_otherwise() -> None:
    class Uniform(LanguageModel):
        def initial_state(self, batch: int) -> Any:
            return jnp.zeros((batch, 3))

        def score(self, labels: jax.Array, state: Any) -> jax.Array:
            return jnp.zeros(labels.shape)

        def advance(self, labels: jax.Array, state: Any) -> Any:
            return state

    model = Uniform()
    np.testing.assert_array_equal(model.end(model.initial_state(2)), np.zeros(2, np.float32))
