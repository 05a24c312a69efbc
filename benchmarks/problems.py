"""The problems that are timed: shapes of real models (shapes.csv), transducers, random logits."""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_mbrnnt import TDT, MultiblankRNNT, Transducer

from . import rivals

Loss = Callable[..., jax.Array]  # of logits, labels and both lengths


class Shape(NamedTuple):
    """A line of shapes.csv: what is measured of it, and why these numbers."""

    name: str
    set: str  # what it is for
    B: int
    T: int
    U: int
    V: int
    dtypes: tuple[str, ...]
    transducers: tuple[str, ...]
    goal_f32: float  # of value_and_grad on an H200, in ms; 0: none
    goal_bf16: float
    goal_lattice: float  # of the lattice alone, in microseconds
    source: str = ""

    @property
    def nodes(self) -> int:
        return self.B * self.T * (self.U + 1)

    @property
    def where(self) -> dict[str, Any]:
        """What a row says of it."""
        return {"shape": self.name, "B": self.B, "T": self.T, "U": self.U, "V": self.V}

    def sizes(self) -> str:
        return f"{self.B},{self.T},{self.U},{self.V}"


def _read_shapes() -> dict[str, Shape]:
    with open(pathlib.Path(__file__).with_name("shapes.csv"), newline="") as file:
        rows = list(csv.reader(file))[1:]
    shapes = (
        Shape(
            name,
            of,
            *map(int, row[:4]),
            *(tuple(x.split()) for x in row[4:6]),
            *map(float, row[6:9]),
            row[9],
        )
        for name, of, *row in rows
    )
    return {shape.name: shape for shape in shapes}


SHAPES = _read_shapes()
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def shapes_of(kind: str) -> list[Shape]:
    return [shape for shape in SHAPES.values() if shape.set == kind]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A transducer, and what the rivals call the same."""

    name: str
    ours: Transducer
    model: rivals.Model

    def loss(self, which: str) -> Loss:
        match which:
            case "ours":
                return dataclasses.replace(self.ours, implementation="ffi")
            case "our pure JAX":
                return dataclasses.replace(self.ours, implementation="xla")
        return functools.partial(rivals.LOSSES[which], model=self.model)


BIG_BLANKS = (2, 4, 8)
DURATIONS = (0, 1, 2, 3, 4)
RNNT = Kind("RNN-T", MultiblankRNNT(), rivals.multiblank(()))
MULTIBLANK = Kind(
    "multi-blank", MultiblankRNNT(big_blank_durations=BIG_BLANKS), rivals.multiblank(BIG_BLANKS)
)
TDT_0_TO_4 = Kind("TDT", TDT(durations=DURATIONS), rivals.tdt(DURATIONS))
KINDS = {kind.name: kind for kind in (MULTIBLANK, RNNT, TDT_0_TO_4)}


def product(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of rows: for four dimensions XLA would transpose the logits' gradient (docs/cpu.md)."""
    rows = hidden.reshape(-1, hidden.shape[-1]) @ kernel
    return rows.reshape(*hidden.shape[:-1], -1)


class Problem:
    """Utterances of full length, so every logit counts; their logits are a product's."""

    def __init__(self, shape: Shape, kind: Kind = MULTIBLANK, dtype: str = "f32") -> None:
        self.shape, self.kind, self.dtype = shape, kind, dtype
        keys = jax.random.split(jax.random.key(0), 3)
        # Of the product: narrow, so that the loss is not lost beside it.
        width = 64 if jax.default_backend() == "gpu" else 16
        scores = shape.V + kind.model.durations  # they stand behind the tokens
        normal = functools.partial(jax.random.normal, dtype=DTYPES[dtype])
        self.operands = (
            normal(keys[0], (shape.B, shape.T, shape.U + 1, width)),
            normal(keys[1], (width, scores)) * DTYPES[dtype](2 / width**0.5),
        )
        self.logits = jax.jit(product)(*self.operands)  # [B, T, U+1, V + durations]
        self.labels = jax.random.randint(keys[2], (shape.B, shape.U), 0, shape.V - 4)
        self.lengths = jnp.full(shape.B, shape.T), jnp.full(shape.B, shape.U)

    def loss(self, which: str, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean, and every utterance's; of the first ones, if there are not all."""
        batch = len(logits)
        operands = self.labels[:batch], *(lengths[:batch] for lengths in self.lengths)
        losses = self.kind.loss(which)(logits, *operands)
        return losses.mean(), losses

    def step(self, which: str) -> Callable[[jax.Array], Any]:
        """As a user calls it; jit it. The gradient is one result of it, beside the losses."""
        return jax.value_and_grad(functools.partial(self.loss, which), has_aux=True)

    def step_behind_product(self, which: str) -> Callable[..., Any]:
        """The same of what the logits are made of."""

        def loss(*operands: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.loss(which, product(*operands))

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def compiled(self, which: str) -> Any:
        """The step, to be called with `logits`."""
        return jax.jit(self.step(which)).lower(self.logits).compile()
