"""Are words what their pieces say, and their times those of their labels?"""

from typing import Any

import numpy as np
import pytest

from jax_mbrnnt import Word, ctm_lines, word_times

FRAMES = {"num_frames": 20, "frame_shift": 0.5}  # seconds that float32 and float64 have exactly


def texts_and_frames(words: list[Word]) -> list[tuple[str, float, float]]:
    return [(word.text, word.start / 0.5, word.end / 0.5) for word in words]


def test_pieces_and_the_next_labels_frame() -> None:
    words = word_times(["▁he", "llo", "▁you", "▁"], [1, 3, 8, 12, -1, -1], **FRAMES)
    assert texts_and_frames(words) == [("hello", 1, 8), ("you", 8, 12)]
    assert [word.confidence for word in words] == [None, None]
    assert word_times([], [], **FRAMES) == []


def test_durations() -> None:
    """That of a label which takes no frame is not known; none goes beyond the utterance."""
    pieces = ["▁a", "b", "▁c", "▁d"]
    words = word_times(pieces, [1, 3, 8, 18], np.array([2, 4, 0, 4, -1]), **FRAMES)
    assert texts_and_frames(words) == [("ab", 1, 7), ("c", 8, 18), ("d", 18, 20)]


def test_longest_label() -> None:
    words = word_times(["▁a", "▁b", "▁c"], [1, 2, 8], [0, 5, 0], max_label_frames=3, **FRAMES)
    assert texts_and_frames(words) == [("a", 1, 2), ("b", 2, 7), ("c", 8, 11)]


def test_a_word_takes_a_frame() -> None:
    words = word_times(["▁a", "▁b"], [4, 4], **FRAMES)
    assert texts_and_frames(words) == [("a", 4, 5), ("b", 4, 20)]


def test_what_stands_between_words() -> None:
    """Spaces, alone or many, belong to no word, whether their confidence is low or not."""
    words = word_times(
        list("  hi  you "),
        range(10),
        boundary=" ",
        confidences=[0, 0, 0.5, 1, 0, 0, 1, 1, 1, 0],
        **FRAMES,
    )
    assert texts_and_frames(words) == [("hi", 2, 4), ("you", 6, 9)]
    assert [word.confidence for word in words] == [0.75, 1]
    # SentencePiece may write the mark alone, too.
    assert [w.text for w in word_times(["▁", "a", "▁", "b"], [0, 1, 2, 3], **FRAMES)] == ["a", "b"]
    # A word that nothing begins.
    assert [w.text for w in word_times(["a", "b▁", "▁c"], [0, 1, 2], **FRAMES)] == ["ab▁", "c"]


def test_boundary_of_ones_own() -> None:
    def boundary(piece: str) -> tuple[bool, str]:
        return not piece.startswith("##"), "" if piece == "<noise>" else piece.removeprefix("##")

    words = word_times(["un", "##til", "<noise>", "##x"], [0, 1, 2, 3], boundary=boundary, **FRAMES)
    assert texts_and_frames(words) == [("until", 0, 2), ("x", 3, 20)]


@pytest.mark.parametrize(("how", "expected"), [("min", 0.25), ("mean", 0.5), ("product", 0.1875)])
def test_confidence_of_words(how: Any, expected: float) -> None:
    (word,) = word_times(["a", "b"], [0, 1], confidences=[0.25, 0.75], aggregate=how, **FRAMES)
    assert word.confidence == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": [0]}, r"frames: expected at least 2 numbers, .* got shape \(1,\)"),
        ({"frames": [[0, 1]]}, r"frames: .* of one utterance, got shape \(1, 2\)"),
        ({"frames": [0, -1]}, r"frames\[1\]: expected one from 0 to 19 \(num_frames - 1\), got -1"),
        ({"frames": [3, 2]}, r"frames\[1\]: expected one from 3 to 19"),
        ({"frames": [3, 20]}, r"frames\[1\]: expected one from 3 to 19"),
        ({"durations": [1]}, "durations: expected at least 2 numbers"),
        ({"confidences": [1.0]}, "confidences: expected at least 2 numbers"),
        ({"frame_shift": 0}, "frame_shift: expected seconds above 0, got 0"),
        ({"aggregate": "max"}, "aggregate: expected one of"),
        ({"max_label_frames": 0}, "max_label_frames: expected at least 1"),
        ({"boundary": ""}, "boundary: expected a mark"),
    ],
    ids=str,
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    options = {"pieces": ["a", "b"], "frames": [0, 1], **FRAMES}
    with pytest.raises(ValueError, match=message):
        word_times(**{**options, **changed})


def test_ctm() -> None:
    words = [Word("a", 0.1, 0.35, 0.98765), Word("b", 10.0, 11.25, None)]
    assert ctm_lines(words, "talk_1", "B") == [
        "talk_1 B 0.100 0.250 a 0.9877",
        "talk_1 B 10.000 1.250 b",
    ]
    for text in ("", "a b", " a", "a\n"):
        with pytest.raises(ValueError, match="word: expected text without white space"):
            ctm_lines([Word(text, 0.0, 1.0, None)], "talk")
    with pytest.raises(ValueError, match="utterance: expected text without white space"):
        ctm_lines(words, "talk 1")
