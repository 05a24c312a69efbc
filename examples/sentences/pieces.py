"""Pieces of words, by SentencePiece: label `i` is piece `i`."""

import io
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece


class Pieces:
    """Texts as labels and back."""

    def __init__(self, model: bytes):
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def names(self) -> list[str]:
        """Returns the piece of each label; "▁" begins a word."""
        return [self._model.id_to_piece(label) for label in range(len(self))]

    def labels(self, text: str) -> np.ndarray:
        """Returns the labels `[U]` of a text."""
        return np.array(self._model.encode(text), np.int32)

    def split(self, text: str) -> list[str]:
        """Returns the pieces of a text."""
        return list(self._model.encode(text, out_type=str))

    def text(self, labels: Sequence[int] | np.ndarray) -> str:
        """Returns the text of labels `[U]`."""
        return str(self._model.decode([int(label) for label in labels]))


def train_pieces(texts: Iterable[str], count: int) -> bytes:
    """Returns a model of so many pieces, of fewer if the texts have not so many.

    The unknown piece is the only one that is not text.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=count,
        model_type="unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def read_pieces(path: pathlib.Path) -> Pieces:
    """Reads a model that was written before."""
    return Pieces(path.read_bytes())
