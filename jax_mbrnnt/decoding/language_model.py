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

    A state is the longest context of the file that the labels end in. A word is looked up in that
    context, and if no n-gram is there in the context without its first word, for which there is to
    pay, and so on. The n-grams stand in a table of 2**bits places and some more, each at the place
    that its context and word hash to, or not far behind, so that a look-up is one read of `reach`
    neighbours. It is a pytree: it may be an argument of a jitted function.

    Attributes:
      words: `[V]` int32, the number of each label's word, -1 for labels that are none.
      contexts: `[places]` int32, the context of the n-gram that stands there, -1 if none does.
      last_words: `[places]` int32, its last word.
      log_probs: `[places]` float32, its log-probability in nats.
      next_contexts: `[places]` int32, the context after it.
      backoffs: `[contexts]` float32, in nats.
      shorter: `[contexts]` int32, the context without its first word.
      start: the context that an utterance begins in.
      end_word: the number of the word that ends an utterance, -1 for none.
      order: words of the longest n-gram.
      bits: of the hash.
      reach: how far behind that an n-gram may stand, and one.
    """

    words: jax.Array
    contexts: jax.Array
    last_words: jax.Array
    log_probs: jax.Array
    next_contexts: jax.Array
    backoffs: jax.Array
    shorter: jax.Array
    start: int
    end_word: int
    order: int
    bits: int
    reach: int

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
        reach = jnp.arange(self.reach, dtype=jnp.int32)
        for _ in range(self.order):
            home = _hash(contexts.astype(jnp.uint32), words.astype(jnp.uint32), self.bits)
            near = jnp.expand_dims(home.astype(jnp.int32), -1) + jnp.expand_dims(
                reach, range(words.ndim)
            )
            is_it = self.contexts[near] == contexts[..., None]
            is_it &= (self.last_words[near] == words[..., None]) & missing[..., None]
            found = is_it.any(axis=-1)
            place = jnp.sum(jnp.where(is_it, near, 0), axis=-1, dtype=jnp.int32)
            after = jnp.where(found, self.next_contexts[place], after)
            missing &= ~found
            step = jnp.where(missing, self.backoffs[contexts], 0.0)
            log_prob += jnp.where(found, self.log_probs[place], step)
            contexts = self.shorter[contexts]
        return log_prob, after


def _hash(contexts: Any, words: Any, bits: int) -> Any:
    """Of uint32, of numpy's or JAX's."""
    mixed = contexts * np.uint32(0x9E3779B1) ^ words * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0xC2B2AE35)
    return mixed >> np.uint32(32 - bits)


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
    of_context, last_words, log_probs, next_contexts = (
        np.array(x) for x in zip(*entries, strict=True)
    )
    bits = min(31, max(1, len(entries).bit_length() + 1))  # two to four places an n-gram
    home = _hash(of_context.astype(np.uint32), last_words.astype(np.uint32), bits).astype(np.int64)
    order_of = np.argsort(home, kind="stable")
    home, count = home[order_of], np.arange(len(entries))
    place = count + np.maximum.accumulate(home - count)  # the next free one
    reach = int((place - home).max()) + 1

    def table(of_each: np.ndarray, empty: float, dtype: Any) -> jax.Array:
        places = np.full(2**bits + reach, empty)
        places[place] = of_each[order_of]
        return jnp.asarray(places, dtype)

    nats = math.log(10)
    return NGram(
        words=jnp.asarray(words, jnp.int32),
        contexts=table(of_context, -1, jnp.int32),
        last_words=table(last_words, -1, jnp.int32),
        log_probs=table(nats * log_probs, 0.0, jnp.float32),
        next_contexts=table(next_contexts, 0, jnp.int32),
        backoffs=jnp.asarray(nats * backoffs, jnp.float32),
        shorter=jnp.asarray(shorter, jnp.int32),
        start=context.get((start_word,), 0),
        end_word=-1 if end_word is None else of(end_word, "end_word"),
        order=order,
        bits=bits,
        reach=reach,
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
