"""Language models for shallow fusion, and n-grams that are read from ARPA files.

An n-gram is scored inside of the search's loop, on the device, so a library that scores on the host
is of no use; what is left for one is to read the file, which is a few lines of numbers and words.
"""

from __future__ import annotations

import abc
import dataclasses
import gzip
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PyTree = Any


class LanguageModel(abc.ABC):
    """What `beam_decode` asks a language model, or anything else that knows what is likely said.

    N is any number of hypotheses, of any utterances, and C a number of labels each. `score` is
    called for the labels that the transducer finds likely, whenever there are any, and should be
    cheap; `advance` is called for the labels taken, together with the prediction network. A neural
    network runs in `advance`, then, and keeps the scores of all labels in its state.

    Both may close over arrays that are traced; if the language model is to be an argument of a
    jitted function, make its class a pytree (`jax.tree_util.register_dataclass`).

    Example:
      Phrase boosting, the simplest there is: a bonus for every label that goes on with a phrase
      from its beginning, all of it taken back where the phrase is not ended.

      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import LanguageModel
      >>> class Phrase(LanguageModel):
      ...     def __init__(self, labels, bonus):
      ...         self.labels, self.bonus = jnp.array([*labels, -1]), bonus
      ...
      ...     def initial_state(self, batch):
      ...         return jnp.zeros(batch, jnp.int32)  # how many labels of the phrase were said
      ...
      ...     def score(self, labels, state):
      ...         goes_on = labels == self.labels[state][:, None]
      ...         begun = jnp.where(state == len(self.labels) - 1, 0, state)[:, None]
      ...         return self.bonus * jnp.where(goes_on, 1, -begun)
      ...
      ...     def advance(self, labels, state):
      ...         return jnp.where(labels == self.labels[state], state + 1, 0)
      >>> phrase = Phrase([3, 1], bonus=2.0)
      >>> state = phrase.advance(jnp.array([3]), phrase.initial_state(1))
      >>> phrase.score(jnp.array([[0, 1]]), state).tolist()
      [[-2.0, 2.0]]
    """

    @abc.abstractmethod
    def initial_state(self, batch: int) -> PyTree:
        """What is known before the first label: a pytree of arrays `[batch, ...]`."""

    @abc.abstractmethod
    def score(self, labels: jax.Array, state: PyTree) -> jax.Array:
        """The log-probabilities `[N, C]` in nats of `labels` `[N, C]` as the next; -inf forbids."""

    @abc.abstractmethod
    def advance(self, labels: jax.Array, state: PyTree) -> PyTree:
        """The state after `labels` `[N]`, of the same structure, shapes and dtypes."""

    def end(self, state: PyTree) -> jax.Array:
        """The log-probability `[N]` that nothing follows; if not overridden, 0."""
        return jnp.zeros(jax.tree.leaves(state)[0].shape[:1], jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class NGram(LanguageModel):
    """A backing-off n-gram on the device; `read_arpa` makes it of a file.

    A state is the longest context of the file that the labels end in. The n-grams that go on from
    a context stand side by side, in the order of their words, and are found by bisection; from
    where none does, the search goes on in the context without its first word, and pays for it.
    It is a pytree: it may be an argument of a jitted function.

    Attributes:
      words: `[V]` int32, the number of each label's word, -1 for labels that are none.
      first: `[contexts + 1]` int32, where the n-grams of each context begin.
      next_words: `[n-grams]` int32, the last word of each.
      log_probs: `[n-grams]` float32, in nats.
      next_contexts: `[n-grams]` int32, the context after each.
      backoffs: `[contexts]` float32, in nats.
      shorter: `[contexts]` int32, the context without its first word.
      start: the context that an utterance begins in.
      end_word: the number of the word that ends an utterance, -1 for none.
      order: words of the longest n-gram.
      most: n-grams of the context that has most.
    """

    words: jax.Array
    first: jax.Array
    next_words: jax.Array
    log_probs: jax.Array
    next_contexts: jax.Array
    backoffs: jax.Array
    shorter: jax.Array
    start: int
    end_word: int
    order: int
    most: int

    def initial_state(self, batch: int) -> jax.Array:
        """The context of the beginning."""
        return jnp.full((batch,), self.start, jnp.int32)

    def score(self, labels: jax.Array, state: jax.Array) -> jax.Array:
        """By the longest n-gram that there is, and what backing off to it costs."""
        return self._look_up(self.words[labels], jnp.broadcast_to(state[:, None], labels.shape))[0]

    def advance(self, labels: jax.Array, state: jax.Array) -> jax.Array:
        """The longest context that ends in the labels so far."""
        return self._look_up(self.words[labels], state)[1]

    def end(self, state: jax.Array) -> jax.Array:
        """Of the end of a sentence, unless the model is without one."""
        if self.end_word < 0:
            return jnp.zeros(state.shape, jnp.float32)
        return self._look_up(jnp.full_like(state, self.end_word), state)[0]

    def _look_up(self, words: jax.Array, contexts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The log-probability of every word in its context, and the context after it."""
        log_prob = jnp.where(words >= 0, 0.0, -jnp.inf).astype(jnp.float32)
        missing = words >= 0
        after = jnp.zeros_like(contexts)
        for _ in range(self.order):
            place = self._place(words, contexts)
            found = missing & (place < self.first[contexts + 1])
            place = jnp.minimum(place, len(self.next_words) - 1)
            found &= self.next_words[place] == words
            after = jnp.where(found, self.next_contexts[place], after)
            missing &= ~found
            step = jnp.where(missing, self.backoffs[contexts], 0.0)
            log_prob += jnp.where(found, self.log_probs[place], step)
            contexts = self.shorter[contexts]
        return log_prob, after

    def _place(self, words: jax.Array, contexts: jax.Array) -> jax.Array:
        """Where in `next_words` the first n-gram of the context stands whose word is not less."""

        def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) // 2
            is_less = (low < high) & (self.next_words[middle] < words)
            return jnp.where(is_less, middle + 1, low), jnp.where(is_less, high, middle)

        ends = self.first[contexts], self.first[contexts + 1]
        low, _ = lax.fori_loop(0, math.ceil(math.log2(self.most + 1)), halve, ends, unroll=True)
        return low


jax.tree_util.register_dataclass(
    NGram,
    data_fields=[f.name for f in dataclasses.fields(NGram) if f.type == "jax.Array"],
    meta_fields=[f.name for f in dataclasses.fields(NGram) if f.type == "int"],
)


def read_arpa(
    file: str | os.PathLike[str] | Iterable[str],
    labels: Sequence[str | None],
    *,
    start_word: str = "<s>",
    end_word: str | None = "</s>",
    unknown_word: str = "<unk>",
) -> NGram:
    r"""Reads a backing-off n-gram from a file in the ARPA format.

    Args:
      file: its path (compressed if it ends in .gz), or its lines.
      labels: V words, what each label class is called in the file; None for a class that is never
        scored, as a blank. The words of the file are the labels of the transducer, word pieces or
        characters, say; a model of words cannot be had for a transducer of pieces this way.
      start_word: what an utterance begins with; a file without it begins with no context.
      end_word: what ends an utterance, for `NGram.end`. With None the end is not scored.
      unknown_word: the word that stands for labels that the file does not have.

    Returns:
      An `NGram`.

    Raises:
      ValueError: the file is not in the format, lacks a part of one of its n-grams, or lacks a
        label or `end_word` and has no `unknown_word`; or two classes have the same word.

    Source: the format of the SRI Language Modeling Toolkit, ngram-format(5): logarithms to base 10,
    Katz's backing off (IEEE Transactions on Acoustics, Speech, and Signal Processing 35, 1987).

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import read_arpa
      >>> lines = '''
      ... \\data\\
      ... ngram 1=4
      ... ngram 2=1
      ...
      ... \\1-grams:
      ... -99 <s> -0.5
      ... -1.0 </s>
      ... -0.5 a -0.2
      ... -0.7 b
      ...
      ... \\2-grams:
      ... -0.1 <s> a
      ...
      ... \\end\\
      ... '''
      >>> model = read_arpa(lines.splitlines(), ["a", "b", None])
      >>> log_probs = model.score(jnp.array([[0, 1, 2]]), model.initial_state(1))
      >>> [round(float(x), 2) for x in log_probs[0] / jnp.log(10)]  # a; b, backing off; a blank
      [-0.1, -1.2, -inf]
    """
    grams = list(_parse(file))
    if not grams or not grams[0]:
        raise ValueError("file: expected an ARPA file with 1-grams, found none")
    order = len(grams)
    number = {gram[0]: i for i, gram in enumerate(grams[0])}

    def of(word: str, what: str) -> int:
        found = number.get(word, number.get(unknown_word))
        if found is None:
            raise ValueError(
                f"{what}: expected a word of the file, or {unknown_word!r} in it, got {word!r}"
            )
        return found

    given = [word for word in labels if word is not None]
    if len(set(given)) < len(given):
        twice = next(word for i, word in enumerate(given) if word in given[:i])
        raise ValueError(f"labels: expected distinct words, got {twice!r} twice")
    words = [-1 if word is None else of(word, f"labels[{v}]") for v, word in enumerate(labels)]

    # Contexts are the n-grams but the longest, and the empty one, which is number 0.
    context: dict[tuple[str, ...], int] = {(): 0}
    for of_order in grams[:-1]:
        context |= {gram: len(context) + i for i, gram in enumerate(of_order)}

    def longest(gram: tuple[str, ...]) -> int:
        """The longest context that these words end in."""
        return next(context[gram[i:]] for i in range(len(gram) + 1) if gram[i:] in context)

    entries = []
    backoffs, shorter = np.zeros(len(context)), np.zeros(len(context), np.int32)
    for of_order in grams:
        for gram, (log_prob, backoff) in of_order.items():
            for part in (gram[:-1], gram[-1:]):
                if part and part not in grams[len(part) - 1]:
                    raise ValueError(
                        f"file: expected an n-gram {' '.join(part)!r}, for there is "
                        f"{' '.join(gram)!r}, found none"
                    )
            entries.append((context[gram[:-1]], number[gram[-1]], log_prob, longest(gram)))
            if gram in context:
                backoffs[context[gram]] = backoff
                shorter[context[gram]] = longest(gram[1:])
    entries.sort(key=lambda entry: entry[:2])
    of_context, next_words, log_probs, next_contexts = (
        np.array(x) for x in zip(*entries, strict=True)
    )
    first = np.searchsorted(of_context, np.arange(len(context) + 1))
    nats = math.log(10)
    return NGram(
        words=jnp.asarray(words, jnp.int32),
        first=jnp.asarray(first, jnp.int32),
        next_words=jnp.asarray(next_words, jnp.int32),
        log_probs=jnp.asarray(nats * log_probs, jnp.float32),
        next_contexts=jnp.asarray(next_contexts, jnp.int32),
        backoffs=jnp.asarray(nats * backoffs, jnp.float32),
        shorter=jnp.asarray(shorter, jnp.int32),
        start=context.get((start_word,), 0),
        end_word=-1 if end_word is None else of(end_word, "end_word"),
        order=order,
        most=int(np.diff(first).max()),
    )


_Grams = dict[tuple[str, ...], tuple[float, float]]


def _parse(file: str | os.PathLike[str] | Iterable[str]) -> Iterator[_Grams]:
    """The n-grams of each order, from the shortest: log-probability and backoff to base 10."""
    if isinstance(file, str | os.PathLike):
        with io.TextIOWrapper(_open(file), encoding="utf-8") as lines:
            yield from _parse(lines)
        return
    grams: _Grams = {}
    order, in_data, ended = 0, False, False
    for number, line in enumerate(file, 1):
        line = line.strip(" \t\r\n")  # words may be of other white space
        if not line:
            continue
        if line == "\\data\\":
            in_data = True
        elif line == "\\end\\":
            ended = True
            break
        elif in_data and line == f"\\{order + 1}-grams:":
            if order:
                yield grams
            order, grams = order + 1, {}
        elif order:
            fields = line.replace("\t", " ").split(" ")
            fields = [field for field in fields if field]
            try:
                log_prob = float(fields[0])
                backoff = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
                sound = len(fields) in (order + 1, order + 2)
            except (ValueError, IndexError):
                sound = False
            if not sound:
                raise ValueError(
                    f"file: expected a logarithm, {order} words and perhaps another logarithm in "
                    f"line {number}, got {line!r}"
                )
            grams[tuple(fields[1 : order + 1])] = (log_prob, backoff)
    if not ended or not order:
        raise ValueError(r"file: expected an ARPA file, from \data\ to \end\, found none")
    yield grams


def _open(path: str | os.PathLike[str]) -> Any:
    return gzip.open(path, "rb") if os.fspath(path).endswith(".gz") else open(path, "rb")
