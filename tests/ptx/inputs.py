"""What check.py tries: all stages one after the other ("pipeline"), or the lattice alone."""

import numpy as np

DTYPES = ("f32", "bf16", "f16", "f64")
BIG_BLANKS = ((), (2,), (2, 4), (2, 3, 5), (2, 4, 8, 3))


def _table(big_blanks):
    """The usual arcs of the lattice alone: (duration, emits)."""
    return [(0, 1), (1, 0)] + [(d, 0) for d in big_blanks]


def _rows(quick):
    """Rows of every kind of length and alignment: short, one more than a power of two, odd."""
    lengths = (7, 65, 129) if quick else (5, 7, 16, 17, 31, 33, 64, 65, 128, 129, 131, 257)
    for i, V in enumerate(lengths):
        for j, dtype in enumerate(DTYPES):
            yield {
                "name": f"V={V} {dtype}",
                "dtype": dtype,
                "shape": (2, 4, 4, V),
                "durations": BIG_BLANKS[(i + j) % (5 if V > 7 else 3)],
                "sigma": 0.05 * (i % 2),
                "fastemit": 0.01 * (j % 2),
                "clamp": 0.2 * (i % 3 == 2),
                "in_place": (i + j) % 3 != 1,
                "offset": (i + j) % 4,
            }


def _case(name, dtype, shape, **rest):
    return {"name": f"{name} {dtype}", "dtype": dtype, "shape": shape, **rest}


def _pipelines():
    for j, dtype in enumerate(DTYPES):

        def case(name, shape, durations, dtype=dtype, **rest):
            return _case(name, dtype, shape, durations=durations, **rest)

        V = (1030, 1500, 2051, 515)[j]
        yield case("long rows", (1, 2, 3, V), BIG_BLANKS[j], in_place=j % 2 == 0, offset=j)
        lengths = {"tl": [4, 5, 3, 5, 0, 9], "ul": [2, 3, 2, 1, 0, 1]}
        yield case("poison", (6, 5, 4, 37), (2, 3), poison=True, fastemit=0.1, **lengths)
        lengths = {"tl": [0, 0, 4, 1, -1, 4], "ul": [0, 2, 0, 4, 1, 5]}
        yield case("lengths", (6, 4, 5, 12), (2,), blank=5, **lengths)
        yield case("masked", (3, 6, 4, 40), (2, 4), mask=True, scale=4.0)
        yield case("T=1", (2, 1, 6, 20), BIG_BLANKS[j])
        yield case("U=0", (2, 9, 1, 33), BIG_BLANKS[4 - j])
        yield case("far from 0", (2, 4, 4, 33), (2,), center=900.0)
    wide = {"name": "wide f32", "dtype": "f32", "shape": (2, 3, 70, 9), "durations": (2,)}
    yield wide
    yield {**wide, "name": "wide bf16", "dtype": "bf16", "shape": (1, 3, 45, 150)}
    yield {**wide, "name": "T=0 f32", "shape": (2, 0, 3, 8), "tl": [0, 0], "ul": [0, 2]}
    many = tuple(range(2, 32))
    yield {**wide, "name": "30 big blanks f32", "shape": (1, 34, 3, 50), "durations": many}


# Shares of the log-probabilities that are so much less.
RARE = [[(0.7, -16)], [(0.02, -100), (0.3, -30)], [(0.1, -1e9)], [(0.5, -200)], [(0.002, -300)]]


def _lattices():
    for dtype in ("f32", "f64"):

        def case(name, shape, table, dtype=dtype, **rest):
            return _case(name, dtype, shape, table=table, **rest)

        for i, d in enumerate(BIG_BLANKS):
            yield case(f"sweep {len(d)} big", (3, 21, 37), _table(d))
            yield case(f"sweep {len(d)} big, warps' edge", (2, 9, 33 + 32 * (i % 2)), _table(d))
        yield case("sweep U=500", (1, 4, 501), _table((2, 3)), mask=False)
        yield case("sweep U=520", (1, 6, 521), _table((2,)), mask=False)
        yield case("five tiles", (2, 12, 150), _table((2, 4, 8)))
        yield case("four tiles", (2, 7, 100), _table(()))
        seven = _table((2, 3, 4, 5, 6, 7, 9))
        yield case("7 big blanks", (2, 30, 40), seven)
        yield case("7 big blanks, tiles", (2, 11, 100), seven)
        # As a trained model makes them; and such as no float holds, here and there or in a crowd.
        for n, rare in enumerate(RARE):
            yield case(f"rare {n}", (2, 60, 40), _table((2, 4, 8)), rare=rare)
        yield case("sweep T=1", (2, 1, 40), _table((2,)))
        yield case("sweep U=0", (2, 33, 1), _table((2, 4)))
        yield case("score only", (3, 14, 40), _table((2, 4)), posteriors=False)
        yield case("odd table", (3, 12, 40), [(3, 0), (1, 0), (0, 1), (1, 0), (1000, 0), (5, 0)])
        yield case("TDT", (2, 12, 40), [(0, 1), (1, 1), (2, 1), (1, 0), (2, 0)])
        tdt = [(d, 1) for d in range(9)] + [(d, 0) for d in range(1, 9)]
        yield case("TDT 0 to 8", (2, 30, 70), tdt)
        yield case("TDT 0 to 8, rare", (2, 30, 40), tdt, rare=RARE[1])
        yield case("TDT without 0", (2, 40, 12), [(2, 1), (1, 1), (3, 0), (1, 0)])
        yield case("long labels", (2, 60, 40), [(0, 1), (10, 1), (1, 0), (25, 0)])
        yield case("long blank", (1, 1200, 3), _table((1100,)))
        yield case("simple sweep", (2, 17, 45), _table((2, 4, 8, 3)), simple=True)
        lengths = {"tl": [0, 0, 8, 1, -1, 9], "ul": [0, 2, 0, 5, 1, 2]}
        yield case("lengths", (6, 8, 6), _table((2, 3)), **lengths)
        yield case("longer", (2, 120, 35), _table((2, 4, 8)))


def _random(first, count):
    for k in range(first, first + count):
        rng = np.random.default_rng(1000 + k)
        dtype = DTYPES[k % 4]
        durations = tuple(int(d) for d in rng.permutation(np.arange(2, 9))[: rng.integers(0, 5)])
        *nodes, V = rng.integers([1, 1, 1, len(durations) + 3], [4, 14, 12, 200]).tolist()
        yield {
            "name": f"random {k} {dtype}",
            "dtype": dtype,
            "shape": (*nodes, V),
            "durations": durations,
            "sigma": float(rng.choice([0, 0.1])),
            "fastemit": float(rng.choice([0, 0.3])),
            "clamp": float(rng.choice([0, 0.05])),
            "in_place": bool(rng.integers(2)),
            "offset": int(rng.integers(0, 8)),
            "blank": int(rng.integers(len(durations), V)),
            "scale": float(rng.choice([1, 5])),
        }


def cases(quick: bool, round: int) -> list[dict]:
    every = [*_rows(quick), *_pipelines(), *_lattices()]
    return every if quick else every + list(_random(24 * round, 24))
