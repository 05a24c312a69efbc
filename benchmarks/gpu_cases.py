"""The shapes and transducers that gpu.py times, and the goals."""

from jax_mbrnnt import TDT, MultiblankRNNT

Shape = tuple[int, int, int, int]  # B, T, U+1, V; TDT has its durations' scores beside the V
CASES = [
    (dtype, criterion)
    for criterion in (
        MultiblankRNNT(big_blank_durations=(2, 4, 8)),
        MultiblankRNNT(big_blank_durations=()),
        TDT(durations=(0, 1, 2, 3, 4)),
    )
    for dtype in ("f32", "bf16")
]
OF_BLANKS, OF_TDT = [0, 1, 2, 3], [4, 5]
# Which of the cases are timed; goals in ms on an H200, float32 and bfloat16.
DESIGN: dict[Shape, tuple[list[int], float, float | None]] = {
    (16, 400, 101, 1024): (OF_BLANKS, 2.1, 1.1),
    (32, 250, 51, 512): (OF_BLANKS, 0.70, 0.38),
    (4, 200, 40, 8193): (OF_TDT, 0.90, 0.50),
    (8, 100, 20, 1025): (OF_TDT, 0.20, None),
    (8, 1500, 301, 1024): (OF_BLANKS, 11.2, 5.8),
}
SMALL: dict[Shape, list[int]] = {(2, 20, 6, 32): OF_BLANKS, (3, 15, 9, 40): OF_TDT}
