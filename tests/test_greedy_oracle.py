"""Is what the greedy search finds what another implementation finds?

`oracle/greedy.npz` has the hypotheses of NeMo's decoders for toy models: a prediction network that
is a table of the last label, and a joint that adds. See `oracle/README.md`.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Array
from jax_mbrnnt import TDT, GreedyDecoding, MultiblankRNNT, Transducer, greedy_decode

ORACLE = np.load(pathlib.Path(__file__).parent / "oracle" / "greedy.npz")
CASES = sorted({key.split("/")[0] for key in ORACLE})


def field(case: str, name: str) -> Array:
    return ORACLE[f"{case}/{name}"]


def transducer_of(case: str) -> Transducer:
    durations = tuple(field(case, "durations").tolist())
    if field(case, "kind") == "tdt":
        return TDT(durations=durations)
    return MultiblankRNNT(big_blank_durations=durations)


KINDS: dict[str, list[str]] = {}  # of cases that one program can decode
for _case in CASES:
    _kind = f"{transducer_of(_case)}, {field(_case, 'max_symbols')}"
    KINDS.setdefault(_kind, []).append(_case)


def test_how_many_there_are() -> None:
    assert len(CASES) == 55
    assert sum(int(field(case, "label_lengths").sum()) for case in CASES) > 2900


@pytest.mark.parametrize("kind", KINDS)
def test_hypotheses_of_another_implementation(kind: str) -> None:
    cases = KINDS[kind]
    transducer, max_symbols = transducer_of(cases[0]), int(field(cases[0], "max_symbols"))

    @jax.jit
    def decode(table: jax.Array, encoded: jax.Array, lengths: jax.Array) -> GreedyDecoding:
        return greedy_decode(
            transducer,
            lambda frame, prediction: frame + prediction,
            lambda labels, state: (table[labels], state),
            encoded,
            lengths,
            initial_state=(),
            max_symbols_per_frame=max_symbols,
        )

    longest = max(field(case, "encoded").shape[1] for case in cases)
    for case in cases:
        table, encoded = (field(case, name) / np.float32(64) for name in ("table", "encoded"))
        encoded = np.pad(encoded, ((0, 0), (0, longest - encoded.shape[1]), (0, 0)))
        found = decode(jnp.asarray(table), jnp.asarray(encoded), field(case, "logit_lengths"))
        np.testing.assert_array_equal(found.label_lengths, field(case, "label_lengths"))
        for name in ("labels", "frames"):
            expected = field(case, name)
            got = np.asarray(getattr(found, name))[:, : expected.shape[1]]
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} of case {case}")
