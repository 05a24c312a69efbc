"""Recognises a split with what `train.py` trained, and says how well and how fast."""

import dataclasses
import pathlib
import sys
import time
from typing import Literal

import jax
import tyro
from rich.console import Console

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jax_mbrnnt import read_arpa
from sentences.config import read_config
from sentences.corpus import CorpusError, read_split
from sentences.data import examples, make_buckets
from sentences.evaluation import Fusion, character_errors_of, errors_of, recognise, stream, texts
from sentences.pieces import Pieces, read_pieces
from sentences.training import load
from speech.intervals import rate_interval

console = Console()


@dataclasses.dataclass(frozen=True)
class Options:
    """Recognises a split with what `train.py` trained, and says how well and how fast."""

    data: pathlib.Path
    """The corpus."""
    split: str = "test-clean"
    """Which of its splits."""
    output: pathlib.Path = pathlib.Path("sentences_output")
    """The output directory of the training."""
    search: Literal["greedy", "beam", "stream"] = "greedy"
    """How: `stream` hears each utterance piece by piece."""
    beam: int = 4
    """Hypotheses, with --search beam."""
    ngram: pathlib.Path | None = None
    """An n-gram of pieces in the ARPA format, for the beam: of `pieces.txt`, which has them."""
    ngram_weight: float = 0.3
    """What its log-probabilities count."""
    piece_bonus: float = 0.3
    """What is added for each piece, in nats: an n-gram prefers short sentences."""
    batch_size: int = 8
    """Utterances recognised at once, but with --search stream."""
    ctm: pathlib.Path | None = None
    """Write the words, their times and confidences there."""
    hypotheses: pathlib.Path | None = None
    """Write what was heard there, in the format of the corpus's transcripts."""


def main(options: Options) -> None:
    """Recognises, and reports."""
    config = read_config(options.output / "config.yaml")
    pieces = read_pieces(options.output / "pieces.model")
    recogniser = load(config, len(pieces), options.output.resolve() / "checkpoints")
    sentences = read_split(options.data, options.split, config.audio.sample_rate)
    chosen, left_out = examples(sentences, pieces, config)
    if left_out:
        console.print(f"{len(left_out)} sentences left out: more pieces than frames, or none")
    buckets = make_buckets(chosen, 4)
    beam = options.beam if options.search == "beam" else 1
    fusion = read_fusion(options, pieces, recogniser.output.out_features)
    if options.search == "stream" and not config.encoder.chunk:
        sys.exit("--search stream: this encoder hears whole utterances (its `chunk` is 0)")

    def run() -> list:
        if options.search == "stream":
            return stream(recogniser, chosen, config)
        return recognise(recogniser, buckets, config, options.batch_size, beam, fusion)

    run()  # Compiles.
    start = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - start

    for name, errors in (
        ("word", errors_of(found, pieces)),
        ("character", character_errors_of(found, pieces)),
    ):
        rate, interval = 100 * errors.rate, rate_interval(errors)
        counts = (int(x.sum()) for x in (errors.substitutions, errors.deletions, errors.insertions))
        kinds = "{} substitutions, {} deletions, {} insertions".format(*counts)
        console.print(f"{name} error rate {rate:.1f} % ({interval}), {kinds}", highlight=False)
    speech = sum(x.example.sentence.seconds for x in found)
    frames, nodes = sum(x.num_frames for x in found), sum(x.joint_evaluations for x in found)
    console.print(
        f"{len(found)} sentences, {nodes / frames:.2f} nodes a frame; {seconds:.2f} s for "
        f"{speech:.0f} s of speech, files and features included, on {jax.default_backend()}",
        highlight=False,
    )
    if options.ctm:
        lines = [line for x in found for line in x.ctm(pieces, config)]
        options.ctm.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if options.hypotheses:
        heard = zip(found, texts(found, pieces)[1], strict=True)
        lines = [f"{x.example.sentence.name} {text}".strip() for x, text in heard]
        options.hypotheses.write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")


def read_fusion(options: Options, pieces: Pieces, scores: int) -> Fusion | None:
    """Reads the n-gram; the classes behind the pieces are blanks, and not in it."""
    if options.ngram is None:
        return None
    names: list[str | None] = [*pieces.names()]
    ngram = read_arpa(options.ngram, names + [None] * (scores - len(names)))
    return Fusion(ngram, options.ngram_weight, options.piece_bonus)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
    except (CorpusError, FileNotFoundError) as error:
        sys.exit(str(error))
