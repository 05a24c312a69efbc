"""What check.py tries: all stages one after the other ("pipeline"), or the lattice alone."""

import numpy as np
from reference import NEXT_LABEL, NOTHING, Arc

DTYPES = ("f32", "bf16", "f16", "f64")
BIG_BLANKS = ((), (2,), (2, 4), (2, 3, 5), (2, 4, 8, 3))


def transducer(case: dict) -> tuple[list[Arc], list[int]]:
    """The case's arcs and the sizes of the heads that they read.

    Its own ("arcs", "sizes"), those of a TDT ("tdt": the durations), or of a multi-blank transducer
    ("durations").
    """
    V = case["shape"][-1]
    if "arcs" in case:
        return case["arcs"], case["sizes"]
    if "tdt" in case:
        durations = case["tdt"]
        blank = case.get("blank", V - len(durations) - 1)
        arcs = [(d, 1, (NEXT_LABEL, i)) for i, d in enumerate(durations)]
        arcs += [(d, 0, (blank, i)) for i, d in enumerate(durations) if d > 0]
        return arcs, [V - len(durations), len(durations)]
    blank = case.get("blank", V - 1)
    big = [(d, 0, (blank - 1 - i,)) for i, d in enumerate(case["durations"])]
    return [(0, 1, (NEXT_LABEL,)), (1, 0, (blank,)), *big], [V]


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
                **_options(i, j),
            }


def _options(i, j):
    return {
        "sigma": 0.05 * (i % 2),
        "fastemit": 0.01 * (j % 2),
        "in_place": (i + j) % 3 != 1,
        "offset": (i + j) % 4,
        **({"clamp": 0.2} if i % 3 == 2 else {}),
    }


TDT = (0, 1, 2, 3, 4)
# Of two heads: arcs that share a class or read nothing, and of the second head more classes than a
# warp has lanes.
MIXED = [(0, 1, (-1, 0)), (1, 0, (2, NOTHING)), (2, 0, (2, 40)), (1, 1, (-1, 7)), (3, 0, (0, 7))]
MIXED += [(2, 1, (-1, NOTHING)), (4, 0, (NOTHING, 0))]
UNREAD = [(0, 1, (-1, NOTHING)), (1, 0, (3, NOTHING)), (2, 0, (1, NOTHING))]


def _two_heads(quick):
    sizes = (6, 33, 250, 518) if quick else (2, 6, 16, 33, 65, 124, 131, 250, 256, 518, 1030)
    for i, tokens in enumerate(sizes):
        for j, dtype in enumerate(DTYPES):
            tdt = (TDT, TDT, (2, 0, 1), tuple(range(9)), (0, 3, 1))[(i + j) % 5]
            shape = (3, 5, 4, tokens + len(tdt))
            yield _case(f"TDT V={tokens}", dtype, shape, tdt=tdt, **_options(i, j))
    for j, dtype in enumerate(DTYPES):

        def case(name, shape, dtype=dtype, **rest):
            return _case(f"TDT {name}", dtype, shape, **rest)

        lengths = {"tl": [4, 5, 3, 5, 0, 9], "ul": [2, 3, 2, 1, 0, 1], "poison": True}
        for tokens in (9, 300):
            shape = (6, 5, 4, tokens + 5)
            yield case(f"poison {tokens}", shape, tdt=TDT, beyond=j, fastemit=0.1, **lengths)
        yield case("lengths", (6, 4, 5, 12), tdt=(0, 1, 2), blank=0, **LENGTHS)
        yield case("masked", (3, 6, 4, 40), tdt=(1, 0, 3), mask=True, scale=4.0)
        yield case("blank is a label", (4, 5, 6, 8), tdt=TDT, blank=1, fastemit=0.5, clamp=0.3)
        yield case("labels weigh nothing", (3, 4, 4, 30), tdt=(0, 1, 2), fastemit=-1.0)
        yield case("far from 0", (2, 4, 4, 33), tdt=TDT, center=900.0)
        yield case("wide", (2, 3, 70, 300 if j % 2 else 40), tdt=TDT)
        yield case("mixed", (3, 5, 4, 12 + 45), arcs=MIXED, sizes=[12, 45], **_options(2, j))
        yield case("mixed, long", (3, 5, 4, 345), arcs=MIXED, sizes=[300, 45], **_options(j, 1))
        unread = {"arcs": UNREAD, "sizes": [9, 5]}
        yield case("unread", (6, 5, 4, 14), **unread, **(lengths if j % 2 else {}))
    long = {"name": "TDT 16 durations f32", "dtype": "f32", "shape": (2, 20, 5, 56)}
    yield {**long, "tdt": tuple(range(16))}


def _case(name, dtype, shape, **rest):
    return {"name": f"{name} {dtype}", "dtype": dtype, "shape": shape, **rest}


LENGTHS = {"tl": [0, 0, 4, 1, -1, 4], "ul": [0, 2, 0, 4, 1, 5]}


def _pipelines():
    for j, dtype in enumerate(DTYPES):

        def case(name, shape, durations, dtype=dtype, **rest):
            return _case(name, dtype, shape, durations=durations, **rest)

        V = (1030, 1500, 2051, 515)[j]
        yield case("long rows", (1, 2, 3, V), BIG_BLANKS[j], in_place=j % 2 == 0, offset=j)
        lengths = {"tl": [4, 5, 3, 5, 0, 9], "ul": [2, 3, 2, 1, 0, 1]}
        yield case("poison", (6, 5, 4, 37), (2, 3), poison=True, fastemit=0.1, **lengths)
        yield case("lengths", (6, 4, 5, 12), (2,), blank=5, **LENGTHS)
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
        is_tdt = k % 3 == 0
        some = rng.permutation(np.arange(0 if is_tdt else 2, 9))[: rng.integers(0, 5)]
        durations = (*map(int, some), 9) if is_tdt else tuple(map(int, some))
        *nodes, V = rng.integers([1, 1, 1, len(durations) + 3], [4, 14, 12, 200]).tolist()
        tokens = V - len(durations) if is_tdt else V
        yield {
            "name": f"random {k} {dtype}",
            "dtype": dtype,
            "shape": (*nodes, V),
            "tdt" if is_tdt else "durations": durations,
            "sigma": float(rng.choice([0, 0.1])),
            "fastemit": float(rng.choice([0, 0.3])),
            "clamp": float(rng.choice([0, 0.05])),
            "in_place": bool(rng.integers(2)),
            "offset": int(rng.integers(0, 8)),
            "blank": int(rng.integers(0 if is_tdt else len(durations), tokens)),
            "scale": float(rng.choice([1, 5])),
        }


def cases(quick: bool, round: int) -> list[dict]:
    every = [*_rows(quick), *_pipelines(), *_two_heads(quick), *_lattices()]
    return every if quick else every + list(_random(24 * round, 24))
