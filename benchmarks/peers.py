"""Losses of other projects, under PyTorch, on logits that JAX holds: no copy is made.

Each function returns a step: a call of it queues one loss and its gradient and returns both,
`[B]` and `[B, T, U+1, V]`. Whatever is not installed raises `ImportError`.
"""

import importlib
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Step = Callable[[], tuple[Any, Any]]


def _step(loss: Callable[..., Any], logits: jax.Array, labels: np.ndarray) -> Step:
    """`loss(logits, labels, logit_lengths, label_lengths)`, of full-length utterances."""
    import torch

    batch, frames, columns, _ = logits.shape
    x = torch.from_dlpack(logits).detach().requires_grad_()
    operands = [labels, np.full(batch, frames), np.full(batch, columns - 1)]
    operands = [torch.tensor(a, dtype=torch.int32, device=x.device) for a in operands]

    def step() -> tuple[Any, Any]:
        losses = loss(x, *operands)
        return losses.detach(), torch.autograd.grad(losses.mean(), x)[0]

    return step


def torchaudio_rnnt(logits: jax.Array, labels: np.ndarray) -> Step:
    """`torchaudio.functional.rnnt_loss`: RNN-T."""
    from torchaudio.functional import rnnt_loss

    def loss(*operands: Any) -> Any:
        return rnnt_loss(*operands, blank=-1, reduction="none", fused_log_softmax=True)

    return _step(loss, logits, labels)


def warp_transducer(logits: jax.Array, labels: np.ndarray) -> Step:
    """warp-transducer's binding for PyTorch: RNN-T. On the CPU it makes the log-softmax itself."""
    from warprnnt_pytorch import rnnt_loss

    def loss(x: Any, targets: Any, frames: Any, columns: Any) -> Any:
        blank = logits.shape[-1] - 1
        return rnnt_loss(x, targets, frames, columns, blank=blank, reduction="none").reshape(-1)

    return _step(loss, logits, labels)


def espnet_multiblank(
    checkout: pathlib.Path | None, logits: jax.Array, labels: np.ndarray, durations: Sequence[int]
) -> Step:
    """ESPnet's Numba kernels, from a checkout: the rest of ESPnet need not be installed."""
    if checkout is None:
        raise ImportError("no checkout of ESPnet given (--espnet)")
    for name in ("espnet2", "espnet2.asr", "espnet2.asr.transducer"):
        package = types.ModuleType(name)  # whose __init__.py stays unread
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = package
    module = importlib.import_module("espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank")
    loss = module.MultiblankRNNTLossNumba(logits.shape[-1] - 1, list(durations), reduction="none")
    return _step(loss, logits, labels)


def wait() -> None:
    """Until PyTorch's GPU has done what was queued."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def flush(num_bytes: int, device: Any) -> Callable[[], tuple[()]]:
    """A preparation that fills so much memory."""
    import torch

    buffer = torch.ones(num_bytes // 4, device=device)

    def fill() -> tuple[()]:
        buffer.add_(1)
        return ()

    return fill
