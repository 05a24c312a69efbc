"""The shapes and transducers that gpu.py times, and the goals."""

from programs import MULTIBLANK, RNNT, TDT_0_TO_4, Shape

CASES = [(dtype, kind) for kind in (MULTIBLANK, RNNT, TDT_0_TO_4) for dtype in ("f32", "bf16")]
OF_BLANKS, OF_TDT = [0, 1, 2, 3], [4, 5]
# Which cases are timed (a TDT's scores of durations come behind the V), goals in ms on an H200 in
# float32 and bfloat16.
DESIGN: dict[Shape, tuple[list[int], float, float | None]] = {
    (16, 400, 101, 1024): (OF_BLANKS, 2.1, 1.1),
    (32, 250, 51, 512): (OF_BLANKS, 0.70, 0.38),
    (4, 200, 40, 8193): (OF_TDT, 0.90, 0.50),
    (8, 100, 20, 1025): (OF_TDT, 0.20, None),
    (8, 1500, 301, 1024): (OF_BLANKS, 11.2, 5.8),
}
SMALL: dict[Shape, list[int]] = {(2, 20, 6, 32): OF_BLANKS, (3, 15, 9, 40): OF_TDT}
