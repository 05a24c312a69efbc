"""A Conformer (Gulati et al. 2020) in Flax NNX, which can be streamed if it hears by chunks.

Differences: rotary positions (Su et al. 2021) in the place of relative ones, which need no table,
and LayerNorm in the convolution in the place of BatchNorm, which does not mix utterances.

With chunks nothing behind a frame's chunk is heard, and of what is before it `left_chunks` chunks
by each block. What a block has to remember of them is its `Memory`: `Conformer.step` hears the next
chunk and gives what `Conformer.__call__` gives for it in the whole utterance.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sentences.config import EncoderConfig
from speech.batches import Batch


class Memory(NamedTuple):
    """What a block has heard: inputs of its attention and of its convolution."""

    attention: jax.Array  # [B, left_chunks * chunk, width]
    convolution: jax.Array  # [B, kernel - 1, width]


class Memories(NamedTuple):
    """What the encoder has heard."""

    halved: list[jax.Array]  # [B, 1, bands, channels], the last frame before each halving
    blocks: list[Memory]
    is_heard: jax.Array  # [B, left_chunks * chunk], which frames there were


class Statistic(nnx.Variable):  # type: ignore[type-arg]
    """Of the training's features; saved with the parameters, and not trained."""


class FeedForward(nnx.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.inner = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.outer = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.outer(nnx.silu(self.inner(self.norm(hidden))))


class Attention(nnx.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.heads = config.heads
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.queries = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.keys_and_values = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array, context: jax.Array, sees: jax.Array) -> jax.Array:
        """Maps `[B, T, width]` and what may be heard with it, which ends with it, to the former.

        `sees` is `[B or 1, T, S]`: which of the context's frames a frame hears.
        """
        split = (*hidden.shape[:1], -1, self.heads, hidden.shape[-1] // self.heads)
        queries = self.queries(hidden).reshape(split)
        keys, values = jnp.split(self.keys_and_values(context), 2, axis=-1)
        first = context.shape[1] - hidden.shape[1]  # the place of the first query among the keys
        heard = jax.nn.dot_product_attention(
            _rotated(queries, first),
            _rotated(keys.reshape(split), 0),
            values.reshape(split),
            mask=sees[:, None],
        )
        return self.output(heard.reshape(hidden.shape))


class Convolution(nnx.Module):
    """A gated depthwise convolution over time."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.depthwise = nnx.Conv(
            *(width, width, config.kernel),
            feature_group_count=width,
            padding="VALID",
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_of_channels = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def gated(self, hidden: jax.Array, is_valid: jax.Array) -> jax.Array:
        """Returns what is convolved: padding is silence."""
        return nnx.glu(self.gate(self.norm(hidden))) * is_valid[..., None]

    def __call__(self, gated: jax.Array) -> jax.Array:
        """Maps `[B, T + kernel - 1, width]` to `[B, T, width]`."""
        return self.output(nnx.silu(self.norm_of_channels(self.depthwise(gated))))


class Block(nnx.Module):
    """Half a feed-forward layer, attention, convolution, and the other half."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.first = FeedForward(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.convolution = Convolution(config, rngs=rngs)
        self.second = FeedForward(config, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(
        self,
        hidden: jax.Array,
        sees: jax.Array,
        is_valid: jax.Array,
        memory: Memory | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Memory | None]:
        """Maps `[B, T, width]` to the same; with a memory also that for the next chunk."""

        def dropped(x: jax.Array, number: int) -> jax.Array:
            if key is None:
                return x
            rngs = nnx.Rngs(dropout=jax.random.fold_in(key, number))
            return nnx.Dropout(self.config.dropout)(x, deterministic=False, rngs=rngs)

        hidden += 0.5 * dropped(self.first(hidden), 0)
        normed = self.attention.norm(hidden)
        context = normed if memory is None else jnp.concatenate([memory.attention, normed], axis=1)
        hidden += dropped(self.attention(normed, context, sees), 1)
        gated = self.convolution.gated(hidden, is_valid)
        if memory is None:
            before = self.config.kernel - 1 if self.config.chunk else self.config.kernel // 2
            around = before, self.config.kernel - 1 - before
            padded = jnp.pad(gated, ((0, 0), around, (0, 0)))
        else:
            padded = jnp.concatenate([memory.convolution, gated], axis=1)
            memory = Memory(
                context[:, context.shape[1] - memory.attention.shape[1] :],
                padded[:, padded.shape[1] - memory.convolution.shape[1] :],
            )
        hidden += dropped(self.convolution(padded), 2)
        hidden += 0.5 * dropped(self.second(hidden), 3)
        return self.norm(hidden), memory


class Halving(nnx.Module):
    """Half as many frames and bands: `[B, F, bands, channels]` to `[B, F // 2, ...]`."""

    def __init__(self, inputs: int, channels: int, dtype: Any, *, rngs: nnx.Rngs):
        # Frame t sees 2 t - 1, 2 t and 2 t + 1: the next chunk needs one frame of this one.
        self.convolution = nnx.Conv(
            *(inputs, channels, (3, 3)),
            strides=2,
            padding=((0, 0), (1, 1)),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, hidden: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Also returns the last frame, which is `before` of what comes next."""
        return nnx.silu(self.convolution(jnp.concatenate([before, hidden], axis=1))), hidden[:, -1:]


class Conformer(nnx.Module):
    """The encoder: log-mel features to `[B, T, joint]`, T = F // 2**halvings."""

    def __init__(self, config: EncoderConfig, bands: int, joint: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.mean = Statistic(jnp.zeros(bands))
        self.deviation = Statistic(jnp.ones(bands))
        channels = [1, *[config.channels] * config.halvings]
        self.halvings = nnx.List(
            [Halving(*pair, dtype, rngs=rngs) for pair in itertools.pairwise(channels)]
        )
        for _ in range(config.halvings):
            bands = -(-bands // 2)
        self.input = nnx.Linear(bands * config.channels, config.width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.output = nnx.Linear(config.width, joint, dtype=dtype, rngs=rngs)

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Encodes utterances.

        Args:
          batch: the utterances.
          key: of dropout, in training.

        Returns:
          The encoded frames `[B, T, joint]` and their lengths `[B]`.
        """
        config, features = self.config, jnp.asarray(batch.features)
        lengths = jnp.asarray(batch.feature_lengths) >> config.halvings
        frames = features.shape[1] >> config.halvings
        before = self._silence(len(features))
        hidden, _ = self._subsampled(features[:, : frames << config.halvings], before)
        place = jnp.arange(frames)
        is_valid = place < lengths[:, None]
        sees = is_valid[:, None]
        if config.chunk:
            chunks_before = (place // config.chunk)[:, None] - place // config.chunk
            sees &= (chunks_before >= 0) & (chunks_before <= config.left_chunks)
        run = Block.__call__
        if config.remat and key is not None:
            run = nnx.remat(run)
        for number, block in enumerate(self.blocks):
            own = None if key is None else jax.random.fold_in(key, number)
            hidden, _ = run(block, hidden, sees, is_valid, None, own)
        return self.output(hidden), lengths

    def nothing_heard(self, batch: int) -> Memories:
        """Returns the memory of who begins to listen."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if not config.chunk:
            raise ValueError("chunk: expected an encoder that hears by chunks, got 0")
        left = config.left_chunks * config.chunk
        blocks = [
            Memory(
                jnp.zeros((batch, left, config.width), dtype),
                jnp.zeros((batch, config.kernel - 1, config.width), dtype),
            )
            for _ in self.blocks
        ]
        return Memories(self._silence(batch), blocks, jnp.zeros((batch, left), bool))

    def step(
        self, memories: Memories, features: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, Memories]:
        """Hears the next chunk.

        Args:
          memories: what was heard.
          features: `[B, chunk << halvings, bands]`, of which the end may be padding.
          lengths: `[B]`, the encoder's frames of the chunk that there are.

        Returns:
          The encoded frames `[B, chunk, joint]`, and what was heard now.
        """
        hidden, halved = self._subsampled(jnp.asarray(features), memories.halved)
        is_valid = jnp.arange(hidden.shape[1]) < jnp.asarray(lengths)[:, None]
        is_heard = jnp.concatenate([memories.is_heard, is_valid], axis=1)
        sees = jnp.broadcast_to(is_heard[:, None], (*hidden.shape[:2], is_heard.shape[1]))
        blocks = []
        for block, memory in zip(self.blocks, memories.blocks, strict=True):
            hidden, memory = block(hidden, sees, is_valid, memory, None)
            blocks.append(memory)
        is_heard = is_heard[:, hidden.shape[1] :]
        return self.output(hidden), Memories(halved, blocks, is_heard)

    def _silence(self, batch: int) -> list[jax.Array]:
        bands, before = self.mean.shape[0], []
        for halving in self.halvings:
            before.append(jnp.zeros((batch, 1, bands, halving.convolution.in_features)))
            bands = -(-bands // 2)
        return before

    def _subsampled(
        self, features: jax.Array, before: list[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        hidden = ((features - self.mean[...]) / self.deviation[...])[..., None]
        halved = []
        for halving, frame in zip(self.halvings, before, strict=True):
            hidden, last = halving(hidden, frame.astype(hidden.dtype))
            halved.append(last)
        return self.input(hidden.reshape(*hidden.shape[:2], -1)), halved


def _rotated(x: jax.Array, first: int) -> jax.Array:
    """Turns pairs of `[B, T, heads, size]` by angles that grow with the place, from `first` on."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** -(np.arange(half) / half)
    angles = ((first + jnp.arange(x.shape[1]))[:, None] * rates)[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
